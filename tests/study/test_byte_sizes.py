import pytest

from sgquant_optuna.study.byte_sizes import exact_megabytes, megabytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("8MB", 8_000_000),
        ("800kB", 800_000),
        ("1.5MiB", 1_572_864),
        ("120000", 120_000),
        ("2 gb", 2_000_000_000),
        ("1KiB", 1024),
        (".5 TB", 500_000_000_000),
        ("7B", 7),
    ],
)
def test_a_size_is_read_with_its_unit(text, count):
    assert parse_bytes(text, what="--budget") == count


@pytest.mark.parametrize("text", ["", "MB", "8MBit", "-8MB", "0", "0kB", "8,5MB", "1e6", "nan"])
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="--budget: expected a size such as 8MB, .*, got '"):
        parse_bytes(text, what="--budget")


def test_a_size_is_shown_in_megabytes():
    assert megabytes(1_234_567) == "1.235 MB"
    assert exact_megabytes(1_234_567) == "1.235 MB (1,234,567 bytes)"
