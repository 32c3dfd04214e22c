"""The command line: what people type. Thin: reads flags, calls one function, prints errors."""
