# SPDX-License-Identifier: MIT OR Apache-2.0
"""The command: devices, ping, bench, version, and the programs of examples/ that go with the file tools."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ground import HOST, patient, shown

from exs.cli import main
from exs.cli.bench import driver
from exs.cli.bench.driver import Measurement, PairError, PairSpec, open_pairs
from exs.cli.common import Address, parse_address, size, table

pytestmark = pytest.mark.timeout(patient(90))

EXS = [sys.executable, "-m", "exs"]
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
BOUND = patient(60)


def run(*arguments: str, expect: int = 0) -> str:
    done = subprocess.run([*EXS, *arguments], capture_output=True, text=True, timeout=BOUND, check=False)
    assert done.returncode == expect, (done.stdout, done.stderr)
    return done.stdout


# --- arguments ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("node:1", "node", 1),
        ("node", "node", 7471),
        ("[::1]:5", "::1", 5),
        ("[::1]", "::1", 7471),
        ("fe80::1", "fe80::1", 7471),
        ("127.0.0.1:0", "127.0.0.1", 0),
    ],
)
def test_addresses(text, host, port):
    assert parse_address(text) == Address(host, port)


@pytest.mark.parametrize("text", [":1", "node:", "node:x", "node:65536", "[::1", "[::1]x", "[]:1", ""])
def test_what_is_no_address(text, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["put", "f", text])
    assert caught.value.code == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_sizes():
    assert [size(text) for text in ("1", "4K", "64KiB", "2m", "1GiB", "3MB")] == [
        1,
        4096,
        65536,
        2 << 20,
        1 << 30,
        3 << 20,
    ]


def test_a_table_lines_up():
    assert table(["a", "bb"], [["ccc", "1"]]) == "a    bb\n---  --\nccc   1"


def test_no_command_shows_the_help(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_version_and_the_module_are_the_command():
    assert re.fullmatch(r"exs \S.*\n", run("--version"))


def test_the_command_needs_rich_and_xxhash_for_nothing():
    check = "import sys, exs.cli; exs.cli.main(['--version']); assert not {'rich', 'xxhash'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=BOUND, stdout=subprocess.DEVNULL)


# --- devices ------------------------------------------------------------------------------------------------


def test_devices_says_what_there_is_and_why_something_is_missing():
    text = run("devices")
    assert re.search(r"^soft +present", text, re.MULTILINE)
    found = json.loads(run("devices", "--json"))
    soft = next(device for device in found["devices"] if device["name"] == "soft")
    assert soft["present"]
    assert soft["capabilities"]["max_msg"] > 0
    assert all(device["present"] or device["reason"] for device in found["devices"])
    paths = {rung["name"]: rung for rung in found["paths"]}
    assert set(paths) == {"shm-vm", "shm-ring", "tcp"}
    assert paths["tcp"]["works"]
    assert all(rung["works"] or rung["reason"] for rung in paths.values())


# --- ping ---------------------------------------------------------------------------------------------------


@pytest.fixture
def responder():
    process = subprocess.Popen(
        [*EXS, "ping", "--serve", "--host", HOST, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield json.loads(process.stdout.readline())["addresses"][0]
    process.send_signal(signal.SIGINT)
    assert process.wait(BOUND) == 130
    process.stdout.close()


def test_ping_measures_round_trips(responder, path):
    found = json.loads(run("ping", responder, "-c", "20", "-i", "0", "-s", "4K", "--path", path, "--json"))
    assert (found["count"], found["bytes"], found["path"]) == (20, 4096, shown(path))
    assert 0 < found["min_us"] <= found["median_us"] <= found["p99_us"] <= found["max_us"]


def test_ping_shows_each_answer(responder):
    text = run("ping", responder, "-c", "3", "-i", "0.01")
    assert text.count("seq=") == 3
    assert "median" in text


def test_ping_without_an_answer_is_exit_code_3():
    run("ping", f"{HOST}:1", expect=3)
    run("ping", expect=2)


# --- bench --------------------------------------------------------------------------------------------------


def test_bench_measures_exs_beside_tcp_sockets():
    found = json.loads(run("bench", "--quick", "--seconds", "0.05", "--sizes", "64K", "--json"))
    assert found["broken"] == {}
    assert found["missing"] == {}
    peers = {result["peer"] for result in found["results"]}
    expected = {f"exs {kind} {path}" for kind in ("stream", "seqpacket") for path in ("shm-vm", "shm-ring", "tcp")}
    smc = {"exs smc-r stream", "exs smc-r queue, views"}
    assert peers == expected | smc | {"python tcp", "trio tcp"}
    for result in found["results"]:
        assert result["per_s"] > 0
        if result["peer"] in smc:
            assert (result["transport"], result["path"]) == ("smc-r v1", "shm-vm")
        elif result["peer"].startswith("exs"):
            assert result["peer"].endswith(result["path"])
        if result["operation"] == "roundtrip":
            assert 0 < result["p50"] <= result["p99"]


def test_bench_prints_a_table():
    text = run("bench", "--quick", "--sizes", "4K,64K", "--only", "stream tcp,python")
    assert "64 KiB MiB/s" in text
    assert len([line for line in text.splitlines() if line.startswith(("exs", "python"))]) == 2


def test_round_trips_of_a_stream_cross_the_end_of_its_ring(monkeypatch):
    monkeypatch.setattr(driver, "START_SECONDS", patient(driver.START_SECONDS))
    peers = str(Path(__file__).resolve().parents[1] / "bench" / "peers.py")
    config = {"type": "stream", "host": HOST}
    for spec in (PairSpec("trio", "exs", config), PairSpec("ES-API", "esapi", {**config, "module": peers})):
        with open_pairs([spec]) as (pairs, missing):
            assert missing == {}
            # 1.2 MB through a ring of 1 MiB, which is no multiple of 3,000.
            assert pairs[0].run(Measurement("roundtrip", 3000, 1), 400).p50 > 0


def test_a_pair_that_breaks_down_says_what_both_said():
    script = """
        [ "$0" = connect ] || echo '{"address": 0}'
        echo '{}'
        read -r command
        [ "$0" = listen ] || { echo "the cause" >&2; exit 1; }
        echo '{"ready": true}'
        read -r never
    """
    with open_pairs([PairSpec("broken", command=("sh", "-c", script))]) as (pairs, _):
        with pytest.raises(PairError) as told:
            pairs[0].run(Measurement("roundtrip", 64, 1), 10)
    assert str(told.value) == "roundtrip of 64 bytes: the cause (listener: still runs; connector: the cause)"


# --- examples -----------------------------------------------------------------------------------------------


def test_the_short_file_programs_move_a_file(tmp_path):
    source = tmp_path / "file"
    source.write_bytes(os.urandom(3_000_000))
    (tmp_path / "there").mkdir()
    server = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "07_serve_files.py"), str(tmp_path / "there"), "0", HOST],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().split()[-1]
        for path in (source, Path(os.devnull)):
            command = [sys.executable, str(EXAMPLES / "06_put_file.py"), str(path), HOST, port]
            done = subprocess.run(command, capture_output=True, text=True, timeout=BOUND, check=True)
            assert ": received, " in done.stdout
    finally:
        server.kill()
        server.communicate()
    assert (tmp_path / "there" / "file").read_bytes() == source.read_bytes()
    assert sorted(os.listdir(tmp_path / "there")) == ["file", "null"]


def test_the_demo_in_small(tmp_path):
    command = [sys.executable, str(EXAMPLES / "demo.py"), "--mib", "8", "--files", "50", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path), "--json"], capture_output=True, text=True, timeout=BOUND, check=True
    )
    found = json.loads(done.stdout)
    assert {(result["way"], result["path"]) for result in found} == {
        ("exs shm", "shm-vm"),
        ("exs tcp", "tcp"),
        ("trio TCP", "trio-tcp"),
    }
    assert [result["files"] for result in found] == [1, 1, 1, 50, 50, 50]
    assert os.listdir(tmp_path) == []
