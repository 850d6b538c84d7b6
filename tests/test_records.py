"""The same records in metrics.jsonl and for TensorBoard, with tensorboardX and without it."""

import struct
import sys

import pytest

from namm_jax.experiment.files import UserError
from namm_jax.experiment.records import Records


def record(step, stage='mirror', **terms):
    return {'stage': stage, 'step': step, 'seconds': step / 4, **terms}


def shown(folder):
    """Returns what TensorBoard shows of a stage: name -> [(step, value)], restarts hiding what came
    before.
    """
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    scalars = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack('<Q', data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            if event.session_log.status == SessionLog.START:
                kept = {
                    name: [point for point in points if point[0] < event.step]
                    for name, points in scalars.items()
                }
                scalars = kept
            for value in event.summary.value:
                scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars


def test_scalars_of_a_resumed_stage_are_there_once(tmp_path):
    pytest.importorskip('tensorboardX')
    first = Records(tmp_path)
    for step in (4, 8, 12):
        first.append(record(step, loss=1.0 / step))
    first.append(record(4, 'dm', loss=float('nan')))  # not finite: null in one, absent in the other
    again = Records(tmp_path)  # killed before the checkpoint of step 12
    again.drop('mirror', 8)
    for step in (12, 16):
        again.append(record(step, loss=1.0 / step))
    assert shown(tmp_path / 'tensorboard/mirror') == {
        'seconds': [(4, 1.0), (8, 2.0), (12, 3.0), (16, 4.0)],
        'loss': [(4, 0.25), (8, 0.125), (12, pytest.approx(1 / 12)), (16, 0.0625)],
    }
    assert shown(tmp_path / 'tensorboard/dm') == {'seconds': [(4, 1.0)]}
    again.discard('mirror')
    assert [path.name for path in (tmp_path / 'tensorboard').iterdir()] == ['dm'] and len(
        again.read()
    ) == 1


def test_without_tensorboardx_there_is_one_file(tmp_path, monkeypatch):
    for name in ('tensorboardX', 'tensorboardX.event_file_writer'):
        monkeypatch.setitem(sys.modules, name, None)
    records = Records(tmp_path)
    records.append(record(1, loss=0.5))
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl'] and records.read() == [
        record(1, loss=0.5)
    ]


@pytest.mark.parametrize(
    'line', [b'{"stage": "mirror", "st', b'', b'[]', b'{"stage": "mirror"}', b'\xff', b'null']
)
def test_damaged_line_is_named(tmp_path, line):
    records = Records(tmp_path)
    records.append(record(1))
    whole = records.path.read_bytes()
    records.path.write_bytes(whole + line + b'\n' + whole)
    for reader in (records.read, lambda: records.drop('mirror', 0)):
        with pytest.raises(
            UserError,
            match='metrics.jsonl, line 2 is damaged: got .*expected a JSON object with stage',
        ):
            reader()
    records.path.write_bytes(whole + line)  # half written, by a kill or on a full disk
    records.mend()
    assert records.path.read_bytes() == whole
