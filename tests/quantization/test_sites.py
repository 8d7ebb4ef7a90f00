import pytest

from sgquant_optuna.quantization.sites import BitWidths, Site


@pytest.mark.parametrize(
    ("site", "name"),
    [
        (Site("conv1", "embedding", 0), "conv1/embedding/bucket0"),
        (Site("conv1", "embedding"), "conv1/embedding"),
        (Site("props.1", "attention"), "props.1/attention"),
        (Site("a/b", "embedding", 12), "a/b/embedding/bucket12"),
    ],
)
def test_a_site_is_written_and_read_by_its_name(site, name):
    assert str(site) == name
    assert Site.parse(name) == site


@pytest.mark.parametrize(
    "name",
    [
        *("", "conv1", "embedding", "conv1/weights", "conv1/bucket0"),
        *(f"conv1/embedding/bucket{number}" for number in ("01", "00", "", "-1", "+1", "1_0")),
        *(f"conv1/embedding/bucket{number}" for number in ("²", "١", "9" * 5000)),  # noqa: RUF001
    ],
    ids=lambda name: name[:40].encode("unicode_escape").decode(),
)
def test_a_name_that_is_no_site_is_refused(name):
    with pytest.raises(ValueError, match="site name: expected"):
        Site.parse(name)


def test_widths_survive_json_in_their_order():
    bits = BitWidths({Site("b", "attention"): 16, Site("a", "embedding", 1): 3})
    assert bits.to_json() == '{"b/attention": 16, "a/embedding/bucket1": 3}'
    again = BitWidths.from_json(bits.to_json())
    assert again == bits
    assert list(again) == list(bits)
    assert hash(again) == hash(bits)


@pytest.mark.parametrize("width", [0, 9, 15, 33, -1, 2.0, "4", True, None])
def test_a_width_out_of_range_is_refused_with_its_site(width):
    with pytest.raises(ValueError, match=r"bit width of conv1/embedding: expected one of"):
        BitWidths({Site("conv1", "embedding"): width})


@pytest.mark.parametrize("text", ["[1]", "3", "null"])
def test_json_that_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="expected a JSON object"):
        BitWidths.from_json(text)


def test_two_names_of_one_bucket_are_not_one_width():
    bits = {"conv1/embedding/bucket1": 4, "conv1/embedding/bucket01": 8}
    with pytest.raises(ValueError, match="site name: expected .*bucket01"):
        BitWidths.from_dict(bits)


def test_a_long_name_or_width_is_not_quoted_whole():
    for bits in ({"x" * 10**6: 4}, {"x" * 10**6 + "/embedding": 9}, {"a/embedding": "9" * 10**6}):
        with pytest.raises(ValueError, match="expected") as error:
            BitWidths.from_dict(bits)
        assert len(str(error.value)) < 300
