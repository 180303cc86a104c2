"""What runs at the server of a federation, on any Flower grid."""
