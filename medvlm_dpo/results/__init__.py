"""The ledger: what every cell wrote, as files. No torch here."""
