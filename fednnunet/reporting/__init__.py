"""Tables, figures, the report, and loggers."""
