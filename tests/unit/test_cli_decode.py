# SPDX-License-Identifier: MIT OR Apache-2.0
"""``exs decode``: from digits, text files and captures; what is broken is said and never a traceback."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import captures
import pytest
import smc_messages as make
from hypothesis import given
from hypothesis import strategies as st

from exs.cli import main
from exs.cli.decode import capture, flows, frames

PROPOSAL = make.message("clc-proposal-v2only-linux61")
ACCEPT = make.message("clc-accept-v2-first")
CONFIRM = make.message("clc-confirm-v2-first-1gid")
CDC = make.message("cdc-closed-after-done")
HELLO = b"EXS1" + struct.pack(">BBHQIIHHI8s16x", 1, 1, 5, 0x7F00, 0x91, 65536, 64, 32, 1 << 20, b"cookie!!")
ADVERT = struct.pack(">BBHIQQIIQQ", 1, 1, 3, 7, 600, 0x7F00, 0x91, 1000, 600, 1200)


def of_capture(data: bytes) -> list[frames.Frame]:
    table, file = flows.Flows(), io.BytesIO(data)
    found: list[frames.Frame] = []
    for packet in capture.packets(file.read(4), file):
        segment = capture.segment(packet)
        if segment is not None:
            found += table.take(segment)
    return found


def names(found: list[frames.Frame]) -> list[str]:
    return [f"{f.layer} {f.name}".strip() for f in found]


# -- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["CLC", "LLC", "CDC"])
def test_every_known_message_is_recognized(layer: str) -> None:
    for name, data in make.messages(layer).items():
        (frame,) = frames.frames_of(data)
        assert (frame.layer, frame.size, frame.error) == (layer, len(data), ""), name


def test_messages_of_exs_are_recognized() -> None:
    refusal = b"EXSR" + struct.pack(">BBBB56s", 1, 5, 9, 0, b"try verbs")
    found = frames.frames_of(HELLO + refusal)
    assert names(found) == ["exs HELLO", "exs REFUSAL"]
    assert found[0].fields["flags"] == ["stream", "write with immediate"]
    assert found[0].fields["cookie"] == b"cookie!!".hex()
    assert (found[1].fields["reason"], found[1].fields["text"]) == ("dial again by verbs", "try verbs")
    (advert,) = frames.frames_of(ADVERT)
    assert (advert.name, advert.fields["id"], advert.fields["length"], advert.fields["seq"]) == (
        "ADVERT",
        7,
        1000,
        1200,
    )
    (notice,) = frames.frames_of(bytes.fromhex("40000258"))
    assert notice.fields == {"kind": "indirect", "end": False, "length": 600}


def test_clc_messages_one_behind_the_other() -> None:
    found = frames.frames_of(PROPOSAL + ACCEPT + CONFIRM + b"payload")
    assert names(found) == ["CLC PROPOSAL", "CLC ACCEPT", "CLC CONFIRM", "unknown"]
    assert found[1].fields["rmbe_bytes"] == 65536
    assert found[0].fields["v2"]["gid"] == "::ffff:10.9.0.1"


def test_what_is_broken_is_said() -> None:
    broken = bytearray(ACCEPT)
    broken[45] = 0
    assert [f.error for f in frames.frames_of(bytes(broken))] == ["ACCEPT: RMBE index 0 would be before the buffer"]
    assert frames.frames_of(PROPOSAL[:100])[0].error
    assert frames.frames_of(HELLO[:20])[0].error
    assert frames.frames_of(b"hello")[0].error == "no message that is known"


@given(
    st.binary(max_size=200)
    | st.sampled_from([PROPOSAL, ACCEPT, HELLO, ADVERT, CDC]).flatmap(
        lambda data: st.integers(0, len(data)).map(lambda end: data[:end])
    )
)
def test_any_bytes_give_frames(data: bytes) -> None:
    found = frames.frames_of(data)
    assert bool(found) is bool(data)
    json.dumps([f.fields for f in found])


# -- captures -------------------------------------------------------------------------------------------------------


def contact() -> list[bytes]:
    """A first contact: CLC over TCP, out of order and repeated, then payload; LLC and CDC over RoCEv2."""
    option = bytes.fromhex("0101fe06e2d4c3d9")
    return [
        captures.tcp(b"", 0xFFFFFFF0, syn=True, options=option),
        captures.tcp(b"", 99, syn=True, back=True, options=option),
        captures.tcp(PROPOSAL[50:], 0xFFFFFFF1 + 50),
        captures.tcp(PROPOSAL[:50], 0xFFFFFFF1),
        captures.tcp(PROPOSAL[40:60], 0xFFFFFFF1 + 40),
        captures.tcp(ACCEPT, 100, back=True),
        captures.tcp(CONFIRM + b"data", 0xFFFFFFF1 + 156),
        captures.tcp(PROPOSAL, 0xFFFFFFF1 + 156 + 184),
        captures.roce(make.message("llc-confirm-link-v2-req")),
        captures.roce(make.message("llc-add-link-v2-req-88")[:44], opcode=0x00),
        captures.roce(make.message("llc-add-link-v2-req-88")[44:], opcode=0x02),
        captures.roce(CDC),
    ]


EXPECTED = ["CLC PROPOSAL", "CLC ACCEPT", "CLC CONFIRM", "LLC CONFIRM_LINK", "LLC ADD_LINK", "CDC CDC"]


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_first_contact(order: str) -> None:
    for data in (
        captures.pcap(contact(), order=order),
        captures.pcap([captures.ethernet(p) for p in contact()], link=1, order=order, nanoseconds=True),
        captures.pcap([captures.ethernet(p, vlan=True) for p in contact()], link=1, order=order),
        captures.pcapng(contact(), order=order),
        captures.pcapng([bytes(14) + b"\x08\x00" + p for p in contact()], link=113, order=order, resolution=9),
        captures.pcapng([b"\x08\x00" + bytes(18) + p for p in contact()], link=276, order=order, resolution=0x8A),
    ):
        found = of_capture(data)
        assert names(found) == EXPECTED
        assert [f.place["packet"] for f in found] == [4, 6, 7, 9, 11, 12]
        assert found[0].place["source"] == "10.9.0.1:40000"
        assert found[-1].place["queue_pair"] == "0x11"


def test_times_are_seconds() -> None:
    packets = [captures.roce(CDC)]
    assert of_capture(captures.pcap(packets))[0].place["time"] == "1.000500"
    assert of_capture(captures.pcap(packets, nanoseconds=True))[0].place["time"] == "1.000001"
    assert of_capture(captures.pcapng(packets, resolution=3))[0].place["time"] == "0.001000"


def test_ipv6() -> None:
    found = of_capture(captures.pcap([captures.ethernet(captures.tcp(PROPOSAL, 5, v6=True))], link=1))
    assert found[0].place["source"] == "[fd00::1]:40000"


def test_messages_of_exs_over_mpa() -> None:
    def fpdu(payload: bytes, *, control: int = 0x41, operation: int = 0x43) -> bytes:
        head = bytes((control, operation)) + (bytes(16) if not control & 0x80 else bytes(12))
        data = struct.pack(">H", len(head) + len(payload)) + head + payload
        return data + bytes(-len(data) % 4 + 4)

    stream = b"MPA ID Req Frame" + struct.pack(">BBH", 0, 2, 4 + 56) + bytes(4) + HELLO
    stream += fpdu(b"written", control=0xC1, operation=0x40) + fpdu(ADVERT[:20], control=0x01) + fpdu(ADVERT[20:])
    stream += fpdu(CDC)
    packets = [captures.tcp(stream[at : at + 37], 1000 + at) for at in range(0, len(stream), 37)]
    assert names(of_capture(captures.pcap(packets))) == ["exs HELLO", "exs ADVERT", "CDC CDC"]


def test_messages_of_exs_over_roce() -> None:
    request = bytes(8 + 24 + 140) + bytes(36) + HELLO
    immediate = captures.roce(b"", opcode=0x0B, extra=bytes(16) + bytes.fromhex("00000258"))
    found = of_capture(
        captures.pcap([captures.roce(request, opcode=0x64, queue_pair=1), captures.roce(ADVERT), immediate])
    )
    assert names(found) == ["exs HELLO", "exs ADVERT", "exs NOTICE"]
    assert found[2].fields["length"] == 600


def test_a_gap_loses_messages_and_makes_no_wrong_ones() -> None:
    packets = contact()
    assert names(of_capture(captures.pcap(packets[:3] + packets[5:]))) == EXPECTED[1:2] + EXPECTED[3:]
    assert names(of_capture(captures.pcap([packets[10]]))) == []
    cut = captures.roce(CDC)[:-10]
    assert of_capture(captures.pcap([cut])) == []


def test_other_traffic_is_passed_over() -> None:
    others = [
        captures.tcp(b"GET / HTTP/1.1", 1),
        b"",
        b"\x45",
        b"\x60" + bytes(10),
        bytes(40),
        captures.roce(b"", opcode=0x11),
    ]
    assert of_capture(captures.pcap(others)) == []
    assert of_capture(captures.pcap([captures.ethernet(captures.roce(CDC))], link=147)) == []


@pytest.mark.parametrize("whole", [captures.pcap(contact()), captures.pcapng(contact())], ids=["pcap", "pcapng"])
def test_a_file_that_is_cut_anywhere(whole: bytes) -> None:
    ends = 0
    for end in range(4, len(whole)):
        try:
            of_capture(whole[:end])
            ends += 1
        except capture.CaptureError:
            pass
    assert ends <= len(contact()) + 4


@given(st.sampled_from([captures.pcap(contact()), captures.pcapng(contact(), resolution=6)]), st.data())
def test_a_file_with_changed_bytes(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(4, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        of_capture(bytes(changed))
    except capture.CaptureError:
        pass


def test_a_length_beyond_the_bound() -> None:
    with pytest.raises(capture.CaptureError, match="broken"):
        of_capture(captures.pcap([]) + struct.pack("<4I", 0, 0, 0x7FFFFFFF, 0))
    with pytest.raises(capture.CaptureError, match="broken"):
        of_capture(captures.pcapng([]) + struct.pack("<2I", 6, 0x7FFFFFFC))


# -- the command ----------------------------------------------------------------------------------------------------


def test_digits_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", make.message("clc-decline-v1").hex(":")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("CLC DECLINE, 28 bytes\n")
    assert "reason       no SMC device on this path" in out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "--json", CDC.hex(), PROPOSAL.hex()]) == 0
    cdc, proposal = json.loads(capsys.readouterr().out)["messages"]
    assert cdc["fields"]["state_flags"] == ["sending done", "closed"]
    assert cdc["fields"]["producer"] == {"wrap": 0, "count": 101}
    assert proposal["fields"]["v2"]["eids"] == ["SMCEXS"]


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "messages.txt"
    text.write_text(f"# two\n{CDC.hex(' ')}\n\n0x{PROPOSAL.hex()} # a client\n")
    packets = tmp_path / "a.pcap"
    packets.write_bytes(captures.pcap(contact()))
    assert main(["decode", str(text), str(packets)]) == 0
    out = capsys.readouterr().out
    assert "4  4.000500  10.9.0.1:40000 > 10.9.0.2:7471\nCLC PROPOSAL, 156 bytes\n" in out
    assert "12  12.000500  10.9.0.1 > 10.9.0.2  queue pair 0x11\nCDC, 44 bytes\n" in out


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (CDC.hex().encode(), captures.pcapng([captures.roce(CDC)])):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(["decode"]) == 0
        assert "CDC, 44 bytes" in capsys.readouterr().out


def test_what_a_peer_sent_does_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(ACCEPT)
    data[108:112] = b"\x1b[2J"
    assert main(["decode", data.hex()]) == 0
    assert "\\x1b[2Jserver" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (b"no digits\n", 2, "line 1: neither pairs of hexadecimal digits nor a capture file"),
        (b"fe2\n", 2, "line 1: neither pairs"),
        (b"\xff\xfe\x00", 2, "line 1: neither"),
        (b"", 1, "no message was found"),
        (captures.pcap([]), 1, "no message was found"),
        (captures.pcap(contact())[:-7], 1, "the file ends inside packet 12"),
        (b"e2d4c3d901009c22", 1, ""),
    ],
)
def test_what_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, code: int, said: str
) -> None:
    file = tmp_path / "given"
    file.write_bytes(content)
    assert main(["decode", str(file)]) == code
    assert said in capsys.readouterr().err


def test_no_such_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", "./there-is-none"]) == 2
    assert "there-is-none: No such file" in capsys.readouterr().err
    assert main(["decode", "."]) == 2
