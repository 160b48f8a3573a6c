"""What may leave the machine."""

import pytest

from medvlm_dpo.errors import InputError
from medvlm_dpo.governance import DATA_CLASSES, may_leave, strictest, validate_data_class


def test_only_credentialed_data_stays() -> None:
    assert {name: may_leave(name) for name in DATA_CLASSES} == {"public": True, "research": True, "credentialed": False}


def test_unknown_class_may_not_leave_silently() -> None:
    with pytest.raises(InputError, match=r"data\.data_class: 'credentialled' is no data class; did you mean credentialed"):
        validate_data_class("credentialled", "data.data_class")
    with pytest.raises(InputError):
        may_leave("")


def test_a_mixture_is_as_protected_as_its_strictest_part() -> None:
    assert strictest(["public", "credentialed", "research"]) == "credentialed"
    assert strictest(["research", "public"]) == "research"
