"""Files and directories of /proc that a process has open, or works in, as monitors do."""

from __future__ import annotations

import pytest

from integration.pods import checkpoints
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")


@pytest.mark.case("a file or a directory of /proc held open, by many names", cases.RESTORED)
def test_files_of_proc_are_open_under_their_names(nodes: Nodes, run_pod: RunPod) -> None:
    program = """
child = os.fork()
if child == 0:
    time.sleep(1000)
dead = os.fork()
if dead == 0:
    time.sleep(1000)
names = ["/proc/self/mounts", "/proc/net/dev", "/proc/self/net", "/proc/self", "/proc/self/task"]
names += ["/proc/self/fd", "/proc/self/fdinfo/0", "/proc/thread-self/status", "/proc/meminfo"]
names += ["/proc/1/task/1/stat", f"/proc/{child}", f"/proc/{child}/maps", f"/proc/{dead}/stat"]
opened = [os.open(name, os.O_RDONLY) for name in names]
opened.append(os.open("/proc/self", os.O_PATH | os.O_NOFOLLOW))
os.kill(dead, 9)
os.waitpid(dead, 0)
os.chdir("/proc/self")
check(lambda: [os.readlink(f"/proc/self/fd/{fd}") for fd in opened] + [os.getcwd()])
"""
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("of-proc", program))


@pytest.mark.case("what /proc/net/dev and /proc/self/mounts say, read on", cases.RESTORED)
def test_files_of_proc_say_what_is_so_in_the_new_pod(nodes: Nodes, run_pod: RunPod) -> None:
    program = """
mounts, links = open("/proc/self/mounts"), open("/proc/net/dev")
wait()
tell((True, True), ("lo:" in links.read(), " /proc proc " in mounts.read()))
"""
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("proc-read", program))


@pytest.mark.case("a file of /proc of a thread, held open", cases.REFUSED)
@pytest.mark.parametrize("after", ["running", "frozen"])
@pytest.mark.parametrize(
    "hold",
    [
        'held = open(f"/proc/1/task/{thread.native_id}/stat")',
        'os.chdir(f"/proc/1/task/{thread.native_id}")',
    ],
    ids=["open", "worked in"],
)
def test_a_file_of_a_thread_is_refused_before_the_checkpoint_is_sealed(
    nodes: Nodes, run_pod: RunPod, hold: str, after: str
) -> None:
    program = f"""
thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)
thread.start()
{hold}
check(lambda: 0)
"""
    source = single.started(nodes, run_pod, single.pod("of-thread", program))
    refused = checkpoints.take(source, "of-thread", "--after", after, check=False)
    assert "container main cannot come back: file " in refused.stderr
    assert " of task 1 (python3): '/proc/1/task/" in refused.stderr
    assert "close it for the checkpoint" in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    assert not checkpoints.directory(nodes.a, "of-thread").exists()
    assert "RESULT SAME" in single.go_on(source)
