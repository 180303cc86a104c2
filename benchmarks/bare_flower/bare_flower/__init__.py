"""A Flower app of FedAvg and clients that hardly train."""
