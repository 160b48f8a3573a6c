"""Tables built from the ledger. No torch here."""
