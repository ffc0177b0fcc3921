"""Several processes against one: what is started, and what it writes down."""
