"""The fields that tell machines apart whose sums round differently."""

import pytest
import torch

from ldm_us.runtime.machine import CHOOSERS, device_kind, libraries, other_device, processor


def test_the_kind_of_a_cpu_tells_its_instructions_its_name_and_what_limits_the_libraries(monkeypatch):
    for name in CHOOSERS:
        monkeypatch.delenv(name, raising=False)
    assert device_kind("cpu") == f"cpu, {torch.backends.cpu.get_cpu_capability()}, {processor()}"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert device_kind("cpu").endswith(", ONEDNN_MAX_CPU_ISA=SSE41")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 143\nmodel name\t: Xeon @ 2.7GHz\nstepping\t: 8\n\n"
            "processor\t: 1\nmodel\t\t: 7\n",
            "Xeon @ 2.7GHz (cpu family 6, model 143, stepping 8)",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50.00\n", None),
    ],
)
def test_a_processor_has_a_name_on_linux_and_elsewhere(tmp_path, monkeypatch, text, name):
    monkeypatch.setattr("platform.processor", lambda: "arm")
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == (name or "arm")
    assert processor(tmp_path / "none") == "arm"


def test_the_libraries_of_this_build_are_named_with_their_versions():
    shown = torch.__config__.show()
    versions = [part.split()[1] for part in libraries().split(", ") if part != "unknown"]
    assert all(version in shown for version in versions)
    assert ("oneDNN" in libraries()) == ("MKL-DNN v" in shown)


def test_another_kind_of_device_than_at_the_start_is_told_and_another_gpu_is_not():
    (said,) = other_device("cpu", "cuda:1")
    assert said.startswith("begun on cpu, it goes on on cuda")
    assert other_device("cuda", "cuda:1") == other_device(None, "cuda") == []
