"""The game of the PyTorch transcription: phases, log, and what is refused."""

import json

import numpy as np
import pytest
import torch

from adadfq_jax import default_config
from adadfq_jax.assets import DIGITS_TEACHER, DIGITS_TEST, play_transcription
from adadfq_jax.reference import game as reference
from adadfq_jax.reference import networks


def test_a_game_is_calibrated_played_and_logged():
    torch.manual_seed(0)
    config = default_config("w4a4")
    config.steps_per_epoch, config.batch_size = 50, 2
    config.calibration_epochs, config.warmup_epochs = 1, 2
    config.student.milestones, config.generator.milestones = (2,), (1, 3)
    teacher = networks.ResNet((1,), (4,), 10).eval()
    student = teacher.quantized((4, 4)).eval()
    match = reference.Game(teacher, student, networks.Generator(10, 8), procedure="authors")
    records, weights, ranges = [], [], []

    def write(record):
        records.append(record)
        weights.append(student.conv1.weight.detach().clone())
        ranges.append(student.act1.high.item())

    images = torch.randn(6, 3, 8, 8), torch.zeros(6, dtype=torch.long)
    play_transcription.play(match, config, 3, images, write)

    assert [record.get("phase") for record in records] == ["calibrate", "warmup", "play", None]
    assert [record["step"] for record in records] == [50, 100, 150, 150]
    assert all(0 <= record["agreement"] <= 1 and record["l_bns"] > 0 for record in records[:3])
    assert records[-1]["top1"] == play_transcription.top1(student, *images)
    assert torch.equal(weights[0], teacher.conv1.weight)
    assert torch.equal(weights[1], teacher.conv1.weight), "the student learned in the warm-up"
    assert not torch.equal(weights[2], teacher.conv1.weight)
    assert ranges[0] == ranges[1] == ranges[2] > 0, "ranges moved after calibration"
    assert match.student_optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert match.generator_optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)


def test_top1_counts_every_image_once():
    student = networks.ResNet((1,), (4,), 10, bits=(8, 8)).eval()
    images = torch.randn(1203, 3, 8, 8)
    with torch.no_grad():
        answers = student(images).argmax(1)
    answers[:203] += 1
    assert play_transcription.top1(student, images, answers) == pytest.approx(1000 / 1203)


def play(*words):
    play_transcription.main(list(map(str, words)))


def test_the_command_reads_a_teacher_and_writes_a_log(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(
        play_transcription,
        "play",
        lambda match, config, epochs, evaluated, write: (
            seen.append(play_transcription.top1(match.teacher, *evaluated)),
            write({"step": epochs, "evaluation": True, "top1": 0.5}),
        ),
    )
    words = f"--teacher={DIGITS_TEACHER}", f"--images={DIGITS_TEST}", f"--output={tmp_path / 'run'}"
    play(*words, "--epochs=3")
    assert seen == [pytest.approx(0.9917, abs=1e-4)]
    log = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(log) == {"step": 3, "evaluation": True, "top1": 0.5}
    with pytest.raises(SystemExit, match=r"metrics\.jsonl exists, .* cannot be resumed"):
        play(*words)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == log


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--teacher", "no.safetensors", "no.safetensors"),
        ("--images", "no.npz", "no.npz"),
        ("--bits", "w9a4", "9"),
        ("--epochs", "0", "epochs"),
        ("--bits", "", "like w4a4, not"),
        ("--seed", str(2**64), "--seed must be at least 0 and below 2"),
        ("--seed", "-1", "--seed must be"),
        ("--output", DIGITS_TEST, "--output=.* is not a folder"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, flag, value, says):
    words = {"--teacher": DIGITS_TEACHER, "--images": DIGITS_TEST, "--output": tmp_path / "run"}
    words[flag] = value
    with pytest.raises(SystemExit, match=says) as stopped:
        play(*(f"{name}={word}" for name, word in words.items()))
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "run").exists()


def test_an_interrupt_is_one_sentence_and_keeps_the_log(monkeypatch, tmp_path):
    def interrupted(match, config, epochs, evaluated, write):
        write({"step": 50})
        raise KeyboardInterrupt

    monkeypatch.setattr(play_transcription, "play", interrupted)
    with pytest.raises(SystemExit, match=r"stopped; .*run holds the log up to here"):
        play(
            f"--teacher={DIGITS_TEACHER}", f"--images={DIGITS_TEST}", f"--output={tmp_path / 'run'}"
        )
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 50}\n'


def test_images_of_another_size_are_refused(tmp_path):
    np.savez(tmp_path / "i.npz", x=np.zeros((2, 4, 4, 3), np.uint8), y=np.zeros(2, int))
    with pytest.raises(SystemExit, match=r"i\.npz has images of 4x4 pixels"):
        play(
            f"--teacher={DIGITS_TEACHER}",
            f"--images={tmp_path / 'i.npz'}",
            f"--output={tmp_path / 'run'}",
        )
