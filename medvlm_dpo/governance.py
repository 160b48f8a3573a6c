"""What may leave the machine. Every sink (judge, dashboard, log) asks here; every data set names its class."""

from typing import Literal, get_args

from medvlm_dpo.errors import InputError, nearest

DataClass = Literal["public", "research", "credentialed"]
DATA_CLASSES: tuple[str, ...] = get_args(DataClass)


def validate_data_class(data_class: object, where: str) -> str:
    """The data class, when it is one.

    Args:
        data_class: the value of a data yaml.
        where: the key it stands under, for the message: `data.data_class`.

    Raises:
        InputError: it is none of the three.
    """
    if data_class in DATA_CLASSES:
        return str(data_class)
    hint = nearest(str(data_class), DATA_CLASSES)
    raise InputError(
        f"{where}: '{data_class}' is no data class{hint} (public: anybody may see it; research: access under terms; "
        "credentialed: personal access, nothing derived from it may leave this machine)"
    )


def may_leave(data_class: str) -> bool:
    """Whether texts, images or what is derived from them may be sent to another machine or a hosted service."""
    return validate_data_class(data_class, "data_class") != "credentialed"


def strictest(data_classes: list[str]) -> str:
    """The class that binds a mixture of data sets: the most protected one among them."""
    return max((validate_data_class(name, "data_class") for name in data_classes), key=DATA_CLASSES.index, default="public")
