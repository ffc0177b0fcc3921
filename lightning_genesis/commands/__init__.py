"""The commands, one file each, named as it is typed; nothing below imports them."""
