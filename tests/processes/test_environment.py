"""What of the server's environment a replica's process sees."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlserve.errors import ConfigurationError
from mlserve.processes.environment import replica_environment, threads_for
from mlserve.settings import Replicas

THREADS = {
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
}
SECRETS = [
    "ACCESS_TOKENS",
    "ANTHROPIC_AUTH_TOKEN",
    "API_KEY",
    "API_KEYS",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_KEY",
    "CELERY_BROKER_URL",
    "DATABASE_URL",
    "DB_PASS",
    "DJANGO_SECRET_KEY",
    "GITHUB_PAT",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HF_TOKEN",
    "MYSQL_PWD",
    "NPM_TOKEN_2",
    "OPENAI_API_KEY",
    "OPENAI_API_KEY_FILE",
    "OPENAI_KEY_1",
    "PGPASSWORD",
    "PRIVATE_KEY_PATH",
    "REDIS_URL",
    "SENTRY_DSN",
    "SESSION_SECRETS",
    "SMTP_PASSWD",
    "SSH_AUTH_SOCK",
    "TOKEN",
    "TOKEN1",
    "api_key",
    "db_Password",
    "mongo_uri",
]
HARMLESS = [
    "AUTHOR",
    "COMPASS",
    "CUDA_DEVICE_ORDER",
    "DSNAME",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HOME",
    "KEYBOARD",
    "LANG",
    "LD_LIBRARY_PATH",
    "MAX_TOKENS",
    "MODEL_URL",
    "MONKEY",
    "OLDPWD",
    "PATH",
    "PATH_INFO",
    "PWD",
    "PYTHONPATH",
    "SECRETARY",
    "SSL_CERT_FILE",
    "TOKENIZERS_PARALLELISM",
    "TORCH_HOME",
    "XAUTHORITY",
    "http_proxy",
]


def environment_of(
    parent: dict[str, str], *, device: str = "cpu", threads: int = 1, keep: tuple[str, ...] = ()
) -> dict[str, str]:
    return replica_environment(parent, device=device, threads=threads, keep=keep)[0]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_stays_behind_unless_it_is_kept(name: str) -> None:
    parent = {name: "x", "HOME": "/root"}

    assert environment_of(parent).keys() - THREADS == {"HOME"}
    assert environment_of(parent, keep=("OTHER", name))[name] == "x"


@pytest.mark.parametrize("name", HARMLESS)
def test_a_name_that_only_resembles_a_secret_is_passed_on(name: str) -> None:
    assert environment_of({name: "x"})[name] == "x"


@pytest.mark.parametrize("name", ["MLSERVE_DRAIN_S", "mlserve_access_log", "MLSERVE_API_KEYS"])
def test_the_servers_own_settings_always_stay_behind(name: str) -> None:
    assert environment_of({name: "1"}, keep=(name,)).keys() == THREADS


@given(
    parent=st.dictionaries(
        st.lists(
            st.sampled_from(["API", "KEY", "MLSERVE", "TOKEN", "CUDA", "A", "URL", "PWD"]),
            min_size=1,
            max_size=4,
        ).map("_".join),
        st.text(),
    ),
    keep=st.sets(st.sampled_from(["HF_TOKEN", "API_KEY", "TOKEN"])),
)
def test_values_are_never_changed_and_nothing_is_made_up(
    parent: dict[str, str], keep: set[str]
) -> None:
    before = dict(parent)

    passed, device = replica_environment(parent, device="cpu", threads=3, keep=keep)

    assert passed.items() - dict.fromkeys(THREADS, "3").items() <= parent.items()
    assert device == "cpu"
    assert keep & parent.keys() <= passed.keys()
    assert parent == before


@given(threads=st.integers(1, 512), given_before=st.sets(st.sampled_from(sorted(THREADS))))
def test_the_threads_of_numeric_libraries_are_set_whatever_the_server_has(
    threads: int, given_before: set[str]
) -> None:
    passed = environment_of(dict.fromkeys(given_before, "64"), threads=threads)

    assert {name: passed[name] for name in THREADS} == dict.fromkeys(THREADS, str(threads))


@pytest.mark.parametrize(
    ("visible", "device", "shown"),
    [
        (None, "cuda:0", "0"),
        (None, "cuda:11", "11"),
        ("3", "cuda:0", "3"),
        ("3, 1", "cuda:1", "1"),
        ("GPU-8932f937,MIG-1c2d", "cuda:1", "MIG-1c2d"),
        ("0,1,-1,2", "cuda:1", "1"),
    ],
)
def test_a_replica_on_a_gpu_sees_only_that_one_as_its_first(
    visible: str | None, device: str, shown: str
) -> None:
    parent = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}

    passed, inside = replica_environment(parent, device=device, threads=1, keep=())

    assert (passed["CUDA_VISIBLE_DEVICES"], inside) == (shown, "cuda:0")


@given(n_visible=st.integers(1, 8), data=st.data())
def test_replicas_on_different_gpus_never_share_one(n_visible: int, data: st.DataObject) -> None:
    names = data.draw(st.permutations([str(number) for number in range(n_visible)]))
    parent = {"CUDA_VISIBLE_DEVICES": ",".join(names)}

    shown = [
        environment_of(parent, device=f"cuda:{number}")["CUDA_VISIBLE_DEVICES"]
        for number in range(n_visible)
    ]

    assert shown == names


@pytest.mark.parametrize(
    ("visible", "device", "n_shown"),
    [("0,1", "cuda:2", 2), ("", "cuda:0", 0), ("-1", "cuda:0", 0), ("0,-1,1", "cuda:1", 1)],
)
def test_a_gpu_that_the_server_may_not_use_is_refused(
    visible: str, device: str, n_shown: int
) -> None:
    with pytest.raises(ConfigurationError, match=f"There is no device `{device}`") as caught:
        environment_of({"CUDA_VISIBLE_DEVICES": visible}, device=device)

    assert f"`CUDA_VISIBLE_DEVICES={visible}` shows {n_shown}." in str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu:1", "cuda", "cuda:", "cuda:x"])
def test_other_devices_keep_their_names_and_what_is_visible(device: str) -> None:
    parent = {"CUDA_VISIBLE_DEVICES": "1,2"}

    passed, inside = replica_environment(parent, device=device, threads=1, keep=())

    assert (passed["CUDA_VISIBLE_DEVICES"], inside) == ("1,2", device)
    assert "CUDA_VISIBLE_DEVICES" not in environment_of({}, device=device)


@given(count=st.integers(1, 64), n_cores=st.integers(1, 256))
def test_replicas_share_the_cores_and_each_has_a_thread_at_least(count: int, n_cores: int) -> None:
    options = Replicas(count=(1, count), placement="process")

    threads = threads_for(options, n_cores=n_cores)

    assert threads >= 1
    assert threads == 1 or threads * count <= n_cores
    assert (threads + 1) * count > n_cores


def test_a_given_number_of_threads_holds() -> None:
    assert threads_for(Replicas(threads_per_replica=7), n_cores=2) == 7
    assert threads_for(Replicas(), n_cores=6) == 6


@pytest.mark.slow
def test_nothing_of_it_needs_an_ml_framework() -> None:
    code = (
        "import sys, mlserve.processes.environment, mlserve.processes.pickling\n"
        "print(sorted({'torch', 'numpy', 'transformers'} & sys.modules.keys()))"
    )

    found = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, timeout=15
    ).stdout

    assert found.strip() == b"[]"
