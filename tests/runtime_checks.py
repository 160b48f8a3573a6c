"""The type checker of the import hook: beartype, with a whole number accepted where a float is expected, as yaml writes `alpha: 32`."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
