"""ZMTP 3.0, ZeroMQ's protocol, over plain stream sockets. Both ends of the tool channel speak it by this."""
