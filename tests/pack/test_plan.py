"""Plans are pure, so most of what they promise is checked on models that nobody has."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tonnage.errors import UsageError
from tonnage.pack.plan import GIB, KINDS, PlannedLayer, PlanOptions, PreviousLayer, kind_of, plan
from tonnage.pack.tar import ALIGNMENT, Piece, TarLayout, footprint

Files = dict[str, int]

KIB = 1 << 10
SMALL = PlanOptions(target=256 * KIB, cap=512 * KIB, max_layers=100)
"""The proportions of the defaults, in kibibytes."""

NAMES = st.text("abcé", min_size=1, max_size=6) | st.text("x", min_size=90, max_size=190)
ENDINGS = st.sampled_from([".safetensors", ".gguf", ".json", ".md", ".py", "", "/a.bin", "/b/README.md", "/tokenizer"])
SIZES = st.integers(0, 64) | st.integers(0, 100 * KIB) | st.integers(0, 2000 * KIB)
MODELS = st.dictionaries(st.tuples(NAMES, ENDINGS).map("".join), SIZES, min_size=1, max_size=25)
OPTIONS = st.builds(
    PlanOptions, target=st.integers(8 * KIB, 600 * KIB), cap=st.integers(64 * KIB, 1200 * KIB), max_layers=st.just(1000)
)


def pieces_of(layers: Sequence[PlannedLayer]) -> list[Piece]:
    return [piece for layer in layers for piece in layer.pieces]


def previous(layers: Sequence[PlannedLayer]) -> list[PreviousLayer]:
    return [
        PreviousLayer(layer.kind, frozenset((piece.path, piece.offset) for piece in layer.pieces)) for layer in layers
    ]


def check(files: Files, options: PlanOptions, layers: Sequence[PlannedLayer]) -> None:
    """What every plan promises."""
    ranges: dict[str, list[tuple[int, int]]] = {path: [] for path in files}
    for piece in pieces_of(layers):
        assert piece.total == files[piece.path]
        ranges[piece.path].append((piece.offset, piece.size))
    for path, parts in ranges.items():
        position = 0
        for offset, size in sorted(parts):
            assert offset == position
            position += size
        assert position == files[path]
        assert len(parts) == 1 or all(size for _, size in parts)
    assert len(layers) < options.max_layers
    for layer in layers:
        assert layer.pieces
        assert TarLayout(layer.pieces).size <= options.cap
        assert {kind_of(piece.path, piece.total) for piece in layer.pieces} == {layer.kind}
        assert list(layer.pieces) == sorted(layer.pieces, key=lambda piece: (piece.path, piece.offset))
    assert [layer.kind for layer in layers] == sorted((layer.kind for layer in layers), key=KINDS.index)


@given(MODELS, OPTIONS)
def test_every_byte_is_in_exactly_one_piece_and_no_layer_over_the_cap(files: Files, options: PlanOptions) -> None:
    check(files, options, plan(files.items(), options))


@given(MODELS, OPTIONS, st.randoms(use_true_random=False))
def test_the_order_of_the_files_does_not_matter(files: Files, options: PlanOptions, chance: random.Random) -> None:
    shuffled = list(files.items())
    chance.shuffle(shuffled)
    assert plan(shuffled, options) == plan(files.items(), options)


@given(MODELS, st.integers(2, 12))
def test_at_most_max_layers_or_refused(files: Files, max_layers: int) -> None:
    options = PlanOptions(target=64 * KIB, cap=512 * KIB, max_layers=max_layers)
    try:
        layers = plan(files.items(), options)
    except UsageError as error:
        assert error.hint
    else:
        check(files, options, layers)


@given(st.lists(st.integers(1, 400 * KIB), min_size=1, max_size=40))
def test_weights_lie_in_bins_of_at_most_the_target(sizes: list[int]) -> None:
    files = {f"model-{number:03}.safetensors": size for number, size in enumerate(sizes)}
    layers = plan(files.items(), SMALL)
    for layer in layers:
        assert len(layer.pieces) == 1 or sum(map(footprint, layer.pieces)) <= SMALL.target
    # First-fit arguments: no two bins could be one.
    used = sorted(sum(map(footprint, layer.pieces)) for layer in layers)
    total = sum(used)
    assert len(layers) <= 2 * -(-total // SMALL.target)


@given(st.lists(st.integers(1, 400 * KIB), min_size=1, max_size=60), st.integers(2, 8))
def test_bins_are_balanced_when_layers_are_few(sizes: list[int], bins: int) -> None:
    """Graham's bound for list scheduling, which holds however the bins came to be."""
    options = PlanOptions(target=64 * KIB, cap=1 << 40, max_layers=bins + 1)
    files = {f"model-{number:03}.bin": size for number, size in enumerate(sizes)}
    used = [sum(map(footprint, layer.pieces)) for layer in plan(files.items(), options)]
    largest = max(footprint(Piece.whole(path, size)) for path, size in files.items())
    assert len(used) <= bins
    assert max(used) <= max(options.target, sum(used) / bins + largest)
    if len(used) == bins and max(used) > options.target:
        assert max(used) - min(used) <= max(largest, options.target)


@given(st.integers(1, 20_000 * KIB), st.integers(64 * KIB, 3000 * KIB), st.integers(1, 200))
def test_a_split_file_joins_again(size: int, cap: int, length: int) -> None:
    options = PlanOptions(target=cap, cap=cap, max_layers=10_000)
    path = "x" * length + ".gguf"
    layers = plan([(path, size)], options)
    check({path: size}, options, layers)
    pieces = sorted(pieces_of(layers), key=lambda piece: piece.offset)
    for piece in pieces:
        assert piece.offset % ALIGNMENT == 0
        assert Piece.from_name(piece.name, piece.size) == piece
    # Equal but for the last, and no more of them than room asks for.
    assert len({piece.size for piece in pieces[:-1]}) <= 1
    assert pieces[-1].size <= pieces[0].size
    assert len(pieces) <= size // (cap - 16 * KIB + 1) + 2


@pytest.mark.parametrize("length", range(5, 201, 5))
@pytest.mark.parametrize("cap", [9_500_000_000, 9_663_676_416])
def test_the_cap_holds_for_pieces_that_need_a_size_record(length: int, cap: int) -> None:
    """A piece above 8 GiB has a longer header than its file's name tells."""
    folder = "/".join(["f" * 200] * 2)
    for size in (cap - 5000, cap - 4000, 4 * cap, 4 * (cap - 8 * KIB), 40 * GIB):
        files = {f"{folder}/{'x' * length}.gguf": size}
        options = PlanOptions(target=cap, cap=cap)
        check(files, options, plan(files.items(), options))


# --- against a previous version

VERSIONS = st.tuples(MODELS, st.integers(2, 100))


def version_one(files: Files) -> tuple[PlannedLayer, ...]:
    return plan(files.items(), PlanOptions(target=128 * KIB, cap=512 * KIB, max_layers=1000))


TWO = PlanOptions(target=128 * KIB, cap=512 * KIB, max_layers=1000)


def homes(layers: Sequence[PlannedLayer]) -> dict[Piece, tuple[Piece, ...]]:
    return {piece: layer.pieces for layer in layers for piece in layer.pieces}


@given(MODELS)
def test_the_same_files_give_the_same_plan(files: Files) -> None:
    one = version_one(files)
    assert plan(files.items(), TWO, previous(one)) == one


@given(MODELS, st.data())
def test_a_removed_file_moves_nothing(files: Files, draw: st.DataObject) -> None:
    assume(len(files) > 1)
    one = version_one(files)
    gone = draw.draw(st.sampled_from(sorted(files)))
    rest = {path: size for path, size in files.items() if path != gone}
    two = plan(rest.items(), TWO, previous(one))
    check(rest, TWO, two)
    expected = [tuple(piece for piece in layer.pieces if piece.path != gone) for layer in one]
    assert [layer.pieces for layer in two] == [pieces for pieces in expected if pieces]


@given(MODELS, st.tuples(NAMES, st.sampled_from([".safetensors", ".bin"])).map("".join), SIZES)
def test_added_weights_leave_every_layer_as_it_was(files: Files, path: str, size: int) -> None:
    assume(path not in files)
    one = version_one(files)
    more = {**files, path: size}
    two = plan(more.items(), TWO, previous(one))
    check(more, TWO, two)
    assert {layer.pieces for layer in one} < {layer.pieces for layer in two}


@given(MODELS, st.tuples(NAMES, ENDINGS).map("".join), SIZES)
def test_an_added_file_moves_no_other(files: Files, path: str, size: int) -> None:
    assume(path not in files)
    one = version_one(files)
    more = {**files, path: size}
    two = plan(more.items(), TWO, previous(one))
    check(more, TWO, two)
    now = homes(two)
    for layer in one:
        together = now[layer.pieces[0]]
        assert all(now[piece] == together for piece in layer.pieces)


@given(MODELS, st.integers(0, 20 * KIB))
def test_a_changed_config_touches_only_its_layer(files: Files, size: int) -> None:
    files = {**files, "config.json": 700, "model.safetensors": 100 * KIB}
    one = version_one(files)
    changed = {**files, "config.json": size}
    two = plan(changed.items(), TWO, previous(one))
    check(changed, TWO, two)
    for before in one:
        if not any(piece.path == "config.json" for piece in before.pieces):
            assert before in two


@settings(max_examples=30)
@given(MODELS, MODELS, MODELS)
def test_any_history_keeps_the_promises(one: Files, two: Files, three: Files) -> None:
    layers: tuple[PlannedLayer, ...] = ()
    for files in (one, two, {**one, **three}, one):
        layers = plan(files.items(), TWO, previous(layers))
        check(files, TWO, layers)


def test_weights_go_into_old_layers_when_no_more_are_allowed() -> None:
    options = PlanOptions(target=100 * KIB, cap=1000 * KIB, max_layers=4)
    files = {f"{number}.bin": 90 * KIB for number in range(3)}
    one = plan(files.items(), options)
    more = {**files, "new.bin": 50 * KIB}
    two = plan(more.items(), options, previous(one))
    check(more, options, two)
    assert len(two) == 3
    assert sum(before in two for before in one) == 2


# --- models of the field


def test_70b_in_30_shards() -> None:
    files = {f"model-{number:05}-of-00030.safetensors": 4_600_000_000 for number in range(1, 31)}
    files |= {
        "config.json": 700,
        "tokenizer.json": 9_000_000,
        "README.md": 40_000,
        "model.safetensors.index.json": 60_000,
    }
    layers = plan(files.items())
    check(files, PlanOptions(), layers)
    assert [layer.kind for layer in layers] == ["weight"] * 30 + ["weight.config", "doc"]


def test_60_shards_of_half_a_bin_and_more() -> None:
    """Two such shards are more than the target; one each is balanced, 26 bins of two and 8 of one would not be."""
    files = {f"model-{number:05}.safetensors": 2_400_000_000 for number in range(60)}
    layers = plan(files.items())
    check(files, PlanOptions(), layers)
    assert {len(layer.pieces) for layer in layers} == {1}


def test_many_small_shards_fill_bins() -> None:
    files = {f"model-{number:05}.safetensors": 500_000_000 for number in range(100)}
    layers = plan(files.items())
    check(files, PlanOptions(), layers)
    assert len(layers) == 13
    assert {len(layer.pieces) for layer in layers} == {7, 8}


def test_40_gb_gguf() -> None:
    files = {"model.Q4_K_M.gguf": 40_000_000_000}
    layers = plan(files.items())
    check(files, PlanOptions(), layers)
    assert len(layers) == 5
    sizes = [layer.size for layer in layers]
    assert max(sizes) - min(sizes) < 5 * ALIGNMENT


def test_300_shards_of_1300_gb() -> None:
    files = {f"model-{number:05}-of-00300.safetensors": 4_333_000_000 for number in range(1, 301)}
    files["config.json"] = 1000
    with pytest.raises(UsageError, match="--max-layer"):
        plan(files.items())  # 100 layers of 9.5 GB are not enough
    options = PlanOptions(cap=20_000_000_000)
    layers = plan(files.items(), options)
    check(files, options, layers)
    assert len(layers) == 99
    assert {len(layer.pieces) for layer in layers if layer.kind == "weight"} == {3, 4}


def test_config_docs_and_code_have_layers_of_their_own() -> None:
    files = {"m.safetensors": 10, "config.json": 10, "README.md": 10, "modeling.py": 10, "sub/LICENSE": 10}
    layers = plan(files.items())
    assert [(layer.kind, [piece.path for piece in layer.pieces]) for layer in layers] == [
        ("weight", ["m.safetensors"]),
        ("weight.config", ["config.json"]),
        ("doc", ["README.md", "sub/LICENSE"]),
        ("code", ["modeling.py"]),
    ]


@pytest.mark.parametrize(
    ("path", "size", "kind"),
    [
        ("model-00001-of-00002.safetensors", 1, "weight"),
        ("MODEL.GGUF", 1, "weight"),
        ("pytorch_model.bin", 1, "weight"),
        ("onnx/model.onnx_data", 1, "weight"),
        ("config.json", 1, "weight.config"),
        ("tokenizer.model", 4 << 20, "weight.config"),
        ("model.safetensors.index.json", 1, "weight.config"),
        ("mystery", 65 << 20, "weight"),
        ("mystery", 64 << 20, "weight.config"),
        ("README", 1, "doc"),
        ("docs/LICENSE-MIT.txt", 1, "doc"),
        ("readme.safetensors", 1, "weight"),
        ("figure.PNG", 1, "doc"),
        ("modeling_llama.py", 1, "code"),
        ("kernel.cu", 1, "code"),
        ("py", 1, "weight.config"),
    ],
)
def test_kinds(path: str, size: int, kind: str) -> None:
    assert kind_of(path, size) == kind


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ({"m.bin": 1}, PlanOptions(cap=1024)),
        ({"m.bin": 0}, PlanOptions(cap=1024)),
        ({"m.bin": 100_000}, PlanOptions(cap=9000)),
        ({"m.bin": 1}, PlanOptions(max_layers=1)),
        ({"m.bin": 1, "config.json": 1}, PlanOptions(max_layers=2)),
        ({f"{number}.bin": 100 * KIB for number in range(9)}, PlanOptions(cap=150 * KIB, max_layers=9)),
        ({"m.bin": 100 << 20}, PlanOptions(cap=64 * KIB, max_layers=100)),
        ({"m" * 230 + ".bin": 100 << 20}, PlanOptions(cap=20 << 20)),
    ],
)
def test_impossible(files: Files, options: PlanOptions) -> None:
    with pytest.raises(UsageError) as caught:
        plan(files.items(), options)
    assert caught.value.hint


def test_a_name_that_no_part_could_have_is_fine_for_a_whole_file() -> None:
    assert len(plan([("m" * 250 + ".bin", 1 << 20)])) == 1
