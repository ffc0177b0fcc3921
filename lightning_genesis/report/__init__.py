"""Tables, curves and the page that are made of folders of runs."""
