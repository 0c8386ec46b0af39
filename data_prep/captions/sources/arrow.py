"""Read captions in Arrow columns, of parquet files and of `datasets` folders."""

from typing import Any

from simzss.errors import DataError, nearest
from simzss.extras import need


def require_column(column: str, setting: str, known: list[str], file: str) -> None:
    """Refuse a column that the file does not have, or has twice.

    Args:
        setting: that names the column.
        file: setting and path of the file, for the message.

    Raises:
        DataError: names the nearest columns.
    """
    if known.count(column) > 1:
        raise DataError(f"{file} has {known.count(column)} columns {column!r}")
    if column not in known:
        raise DataError(f"{file} has no column {column!r}: give {setting}=NAME; {nearest(column, known)}")


def require_text(kind: Any, setting: str, column: str, file: str, lists: bool = False) -> None:
    """Refuse a column of another Arrow type than text, or a list of texts with `lists`.

    Raises:
        DataError: names the type.
    """
    types = need("pyarrow", "prep").types
    inner = kind
    if lists and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        inner = kind.value_type
    if types.is_dictionary(inner):
        inner = inner.value_type
    # A column without a single value has the type null.
    if not (types.is_string(inner) or types.is_large_string(inner) or types.is_string_view(inner)
            or types.is_null(inner)):  # fmt: skip
        raise DataError(f"{file}: {setting}={column} holds {kind}, not text")


def read_texts(scalar: Any) -> list[str | None]:
    """Return the captions of a value, which is one text or a list of them; None for one that is not UTF-8.

    Arrow does not check its texts, so that a file may hold any bytes.
    """
    if not scalar.is_valid:
        return [""]
    values = scalar.values if hasattr(scalar, "values") else [scalar]
    return [read_text(value) for value in values]


def read_text(scalar: Any) -> str | None:
    """Return a text, empty where there is none, None where it is not UTF-8."""
    try:
        return scalar.as_py() or ""
    except UnicodeDecodeError:
        return None
