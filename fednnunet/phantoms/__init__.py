"""Generated datasets modelled on the paper's collections."""
