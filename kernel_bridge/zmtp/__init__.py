"""ZMTP 3.0, ZeroMQ's protocol, over plain stream sockets: for both ends of the tool channel, and the host's others."""
