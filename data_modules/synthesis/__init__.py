"""Small renderers that write scenes in the publishers' own formats, or stand in for their raw material."""
