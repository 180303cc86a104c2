"""nnU-Net's ``find_best_configuration`` over a federation: of sums that nodes tell, and no case."""
