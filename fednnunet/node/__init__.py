"""What runs at a hospital: the long-lived worker and its stages."""
