"""Users of the host that are nobody special."""

USER = 4242
NOBODY = 65534
