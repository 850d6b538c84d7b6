"""The launch files of pods and clusters, with commands in the place of `gcloud`, `srun` and
`scontrol` that log.
"""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from namm_jax.experiment import cli
from namm_jax.experiment.processes import Place

NAMES = {'PROJECT': 'p', 'ZONE': 'z', 'BUCKET': 'b', 'REPOSITORY': 'r'}
LAUNCH = Path(__file__).resolve().parent.parent / 'launch'

# The state of the queued resource is the first line of a file; creating and running change it as
# told there.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
case "$*" in
  *describe*) cat "$STATE" ;;
  *create*) echo ACTIVE > "$STATE" ;;
  *delete*) rm "$STATE" ;;
  *main.py*) if [ -s "$FATES" ]; then
      read -r fate < "$FATES"; sed -i 1d "$FATES"
      [ "$fate" = preempted ] && echo SUSPENDED > "$STATE"
      [ "$fate" = done ] || exit 1
    fi ;;
esac
"""


@pytest.fixture
def run(tmp_path):
    """Returns a function that runs a launch file, our commands first on its path, and returns what
    came of it.
    """
    folder, log = tmp_path / 'bin', tmp_path / 'log'
    folder.mkdir()

    def run(file, *arguments, commands, **environment):
        for name, text in commands.items():
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        log.write_text('')
        path = f'{folder}:{os.environ["PATH"]}'
        done = subprocess.run(
            ['bash', LAUNCH / file, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=tmp_path,
            env={**os.environ, 'PATH': path, 'LOG': str(log), **environment},
        )
        return done, log.read_text().splitlines()

    return run


def test_tpu_pod_goes_on_after_a_preemption(run, tmp_path):
    (tmp_path / 'fates').write_text('preempted\ndone\n')
    names = dict(
        PROJECT='p',
        ZONE='z',
        BUCKET='b',
        REPOSITORY='r',
        STATE=str(tmp_path / 's'),
        FATES=str(tmp_path / 'fates'),
    )
    arguments = ('--config=configs/burgers.py:paper', '--config.mirror.channels=(8, 16)')
    done, log = run('tpu_pod.sh', *arguments, commands={'gcloud': GCLOUD}, **names)
    assert done.returncode == 0, done.stderr
    assert any(r'--config.mirror.channels=\(8\,\ 16\)' in line for line in log)
    assert sum('create' in line for line in log) == 2 and sum('delete' in line for line in log) == 1
    runs = [line for line in log if 'main.py' in line]
    assert len(runs) == 2 and runs[0] == runs[1] and '--worker=all' in runs[0]
    assert '--distributed' in runs[0] and '--config=configs/burgers.py:paper' in runs[0]


def test_tpu_pod_stops_where_the_run_itself_fails(run, tmp_path):
    (tmp_path / 'fates').write_text('failed\n')
    names = dict(
        PROJECT='p',
        ZONE='z',
        BUCKET='b',
        REPOSITORY='r',
        STATE=str(tmp_path / 's'),
        FATES=str(tmp_path / 'fates'),
    )
    done, log = run('tpu_pod.sh', commands={'gcloud': GCLOUD}, **names)
    assert done.returncode == 1 and 'the run itself failed' in done.stderr
    assert sum('main.py' in line for line in log) == 1
    done, _ = run('tpu_pod.sh', commands={'gcloud': GCLOUD}, **(names | {'PROJECT': ''}))
    assert done.returncode == 1 and 'set PROJECT' in done.stderr


@pytest.mark.parametrize(('status', 'queued'), [(0, 0), (143, 1), (2, 0)])
def test_slurm_job_queues_itself_again_when_its_time_is_up(run, tmp_path, status, queued):
    (tmp_path / '.venv/bin').mkdir(parents=True)
    (tmp_path / '.venv/bin/activate').write_text('')
    commands = {
        'srun': f'#!/usr/bin/env bash\necho "srun $*" >> "$LOG"\nexit {status}\n',
        'scontrol': '#!/usr/bin/env bash\necho "scontrol $*" >> "$LOG"\n',
    }
    done, log = run(
        'slurm.sbatch',
        '--config=a',
        '--workdir=b',
        commands=commands,
        SLURM_SUBMIT_DIR=str(tmp_path),
        SLURM_JOB_ID='7',
    )
    assert done.returncode == status and '--distributed --config=a --workdir=b' in log[0]
    assert log[1:] == ['scontrol requeue 7'] * queued


def test_pods_of_a_kubernetes_job_are_processes_of_one_run():
    service, job = yaml.safe_load_all((LAUNCH / 'kubernetes.yaml').read_text())
    name, pods = job['metadata']['name'], job['spec']['completions']
    pod = job['spec']['template']['spec']
    (container,) = pod['containers']
    assert job['spec']['completionMode'] == 'Indexed' and job['spec']['parallelism'] == pods > 1
    assert pod['restartPolicy'] == 'OnFailure' and container['command'][1] == 'launch/main.py'
    mounted = {mount['name']: mount['mountPath'] for mount in container['volumeMounts']}
    assert [volume['name'] for volume in pod['volumes']] == list(mounted)
    for index in range(pods):
        words = [word.replace('$(JOB_COMPLETION_INDEX)', str(index)) for word in container['args']]
        given = cli.parse('run', words)
        place = Place(given.coordinator, given.num_processes, given.process_index)
        assert (place.count, place.index, given.name) == (pods, index, 'burgers:paper')
        assert given.workdir.startswith(f'{mounted["runs"]}/')
    # An indexed pod's host name is the job's and its index, found in the subdomain of a service.
    assert place.coordinator.split(':')[0] == f'{name}-0.{pod["subdomain"]}'
    assert (
        service['metadata']['name'] == pod['subdomain'] and service['spec']['clusterIP'] == 'None'
    )
    assert service['spec']['selector'] == {'job-name': name}
