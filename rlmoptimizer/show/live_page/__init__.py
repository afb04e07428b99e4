"""The page of an optimization, served on loopback while the optimization goes on."""
