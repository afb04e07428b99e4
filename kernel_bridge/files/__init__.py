"""Files of a session: its directory, the checkpoint kept in it, and the sessions of this user. Knows no process."""
