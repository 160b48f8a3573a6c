"""Work that is done once: arrays by content key in files that many processes share."""
