"""What tests stand on: hosts that run microVMs, guests, launches. No test is in here."""
