"""The benchmark compares like with like: same tokens, same pictures, same losses; and its tables say what was measured."""

from pathlib import Path

import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from medvlm_dpo.data.sampler import step_examples
from tests.benchmarks import bench_gpu
from tests.benchmarks.measuring import measure, model_folder
from tests.benchmarks.peer import processor_of, row_of
from tests.benchmarks.sections import ANSWERS_ONLY, PATCHED, SIDES, Effort, sweep_section
from tests.benchmarks.shape import TINY, Shape
from tests.benchmarks.tables import Comparison, Measured, comparison_table, loss_table, markdown, surroundings
from tests.benchmarks.targets import EACH_STEP, MAIN, PEER, TARGETS, WARM, missed, verdicts
from tests.benchmarks.work import NeededWork, linear_weights
from tests.benchmarks.world import SEED, backbone, llava_config, make_pairs, stream, text_config, vision_config, write_surroundings

SMALL = Shape(answer_tokens=7, vocabulary=600, text_tokens=30, **TINY)


@pytest.fixture(scope="module")
def settings_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose weights nobody reads."""
    folder = tmp_path_factory.mktemp("bench")
    llava_config(text_config(SMALL), vision_config(SMALL), image_tokens=SMALL.image_tokens).save_pretrained(folder)
    write_surroundings(folder, SMALL.image_side)
    (folder / "model.safetensors").touch()
    return folder


def test_both_sides_are_given_the_same_tokens_and_pictures(settings_folder: Path) -> None:
    model = backbone(settings_folder)
    pairs = make_pairs(SMALL, model.encoder)[:4]
    processor = processor_of(settings_folder, SMALL)
    batch = DataCollatorForVisionPreference(processor)([row_of(pair, processor) for pair in pairs])
    for row, (view, pair) in enumerate((view, pair) for view in ("chosen", "rejected") for pair in pairs):
        answer = model.encoder.answer_ids(getattr(pair, view))
        shown, scored = batch["attention_mask"][row].bool(), batch["completion_mask"][row].bool()
        assert tuple(batch["input_ids"][row][shown].tolist()) == (*model.encoder.prompt_ids(pair.turns), *answer)
        assert tuple(batch["input_ids"][row][scored].tolist()) == answer
        assert torch.equal(batch["pixel_values"][row], model.pixels(pair.image))


def test_pairs_have_the_lengths_that_were_asked_for(settings_folder: Path) -> None:
    encoder = backbone(settings_folder).encoder
    pairs = make_pairs(SMALL, encoder)
    lengths = [len(encoder.prompt_ids(pair.turns)) - SMALL.image_tokens for pair in pairs]
    assert {len(encoder.answer_ids(text)) for pair in pairs for text in (pair.chosen or "", pair.rejected or "")} == {7}
    assert len(set(lengths)) > 1
    assert all(25 <= length <= 35 for length in lengths)


def test_the_peer_reads_the_data_in_the_order_of_our_sampler(settings_folder: Path) -> None:
    pairs = make_pairs(SMALL, backbone(settings_folder).encoder)
    third = step_examples(2, num_examples=len(pairs), batch_size=4, seed=SEED)
    assert [pair.id for pair in stream(SMALL, pairs)[8:12]] == [pairs[place].id for place in third]


@pytest.mark.slow  # six processes that import torch and transformers
def test_all_sides_compute_the_same_losses() -> None:
    with model_folder(SMALL) as folder:
        ran = measure(folder, SMALL, [*SIDES, PATCHED], warm_up=1, timed=4, threads=1, wants_profile=lambda _: {WARM})
    results = {result.name: result for result in ran.results}
    for name in (result.name for result in ran.results if result.name != PEER):
        assert Comparison(results[name], results[PEER]).loss_difference < 1e-6
    losses = results[PEER].losses
    assert len(losses) == 5
    assert max(losses) - min(losses) > 1e-3  # they move, or equality would say nothing
    assert len(results[ANSWERS_ONLY].seconds) == 2
    assert ran.flops[EACH_STEP] == 1.5 * ran.flops[WARM]
    assert list(ran.profiles) == [WARM]


@pytest.mark.slow  # four processes
def test_the_second_cell_of_a_sweep_computes_no_reference_value() -> None:
    cells, fills = sweep_section(Effort(threads=1, main=SMALL))
    computed = [line.split("|")[-2].strip() for line in cells.splitlines()[-2:]]
    assert computed == ["32", "0"]  # 16 pairs of two answers
    figures = [[float(cell.replace(",", "")) for cell in line.split("|")[2:4]] for line in fills.splitlines()[-3:]]
    assert all(rate > 0 for rate, _ in figures)
    assert figures[2][1] > figures[1][1]  # hidden states are larger


def test_needed_work_is_counted_by_hand() -> None:
    shape = Shape(answer_tokens=1, vocabulary=10, hidden=4, intermediate=6, layers=2, heads=2, key_value_heads=1)
    decoder = 2 * (2 * 4 * 4 + 2 * 4 * 2 + 3 * 4 * 6)  # queries and output, keys and values, gate, up and down
    assert linear_weights(shape) == decoder
    assert NeededWork(shape, tokens=7, answer_tokens=3).flops() == 4 * (decoder * 7 + 4 * 10 * 3)


def test_a_missed_target_is_told() -> None:
    target = TARGETS[0]
    losses = (0.7, 0.6)
    peer = Measured(PEER, MAIN, seconds=(30.0, 31.0, 32.0), losses=losses, peak_mb=8000)
    fast = Measured(target.entrant, MAIN, seconds=(31.0 / target.speed,), losses=losses, peak_mb=3200)
    slow = Measured(target.entrant, MAIN, seconds=(16.0, 15.5), losses=(0.7, 0.61), peak_mb=4000)
    assert [met for met, _, _ in verdicts([peer, fast])] == [True, True, True]
    assert missed([peer, fast]) == set()
    assert missed([peer, slow]) == {PEER, target.entrant}
    assert [met for met, _, _ in verdicts([peer, slow])] == [False, False, False]
    assert verdicts([fast]) == []


def test_tables_show_every_side_beside_the_peer() -> None:
    peer = Measured(PEER, MAIN, seconds=(30.0, 31.0, 32.0), losses=(0.7, 0.6, 0.5), peak_mb=8000, processor_s=(60.0,))
    own = Measured("ours", MAIN, seconds=(10.0,), losses=(0.7, 0.6001), peak_mb=2000, processor_s=(16.0,))
    lines = comparison_table([peer, own], PEER).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[3:8]] == [PEER, "31.00 (30.00-32.00)", "60.00", "0.129", "1"]
    assert [cell.strip() for cell in lines[3].split("|")[3:-1]] == [
        "ours",
        "10.00 (10.00-10.00)",
        "16.00",
        "0.400",
        "3.10",
        "3.75",
        "2,000",
        "0.25",
        "1.0e-04 (2)",
    ]
    assert "0.600100" in loss_table([own], number=2)
    assert loss_table([own]).count("\n") == 1  # too few losses to be shown
    assert markdown(("a", "long"), [("wide", "b")]) == "| a    | long |\n| ---- | ---- |\n| wide | b    |"
    assert "2 threads" in surroundings(2)


@pytest.mark.parametrize(
    ("device", "tflops", "peak"), [("NVIDIA H200", None, 989e12), ("NVIDIA A100-SXM4-80GB", None, 312e12), ("another", 50.0, 50e12)]
)
def test_the_peak_of_a_device(device: str, tflops: float | None, peak: float) -> None:
    assert bench_gpu.peak_flops(device, tflops) == peak


def test_a_device_of_unknown_peak_is_refused() -> None:
    with pytest.raises(SystemExit, match="--peak-tflops"):
        bench_gpu.peak_flops("another", None)


def test_without_a_gpu_the_gpu_benchmark_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["bench_gpu"])
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main()
    assert ended.value.code == 2
    assert "no CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("shape", "billions"), [(bench_gpu.MISTRAL, 6.98), (bench_gpu.QWEN2, 6.53)])
def test_the_shapes_have_seven_billion_weights(shape: Shape, billions: float) -> None:
    assert round(linear_weights(shape) / 1e9, 2) == billions  # without embedding and head


def test_gpu_targets_are_told() -> None:
    peer = Measured(PEER, bench_gpu.MISTRAL, seconds=(3.0,), losses=(), peak_mb=60_000)
    rows = [("LLaVA-Med", Measured(WARM, bench_gpu.MISTRAL, (1.0,), (), 30_000), peer, share) for share in (0.5, 0.4)]
    assert [line.split()[1] for line in bench_gpu.verdicts(rows)] == ["met:", "met:", "met:", "MISSED:"]
    assert "| 3.00 " in bench_gpu.table(rows)
    assert "| 50 % " in bench_gpu.table(rows)
