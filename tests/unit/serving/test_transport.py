"""URLs, retries and messages of the client, without a server."""

import gzip
import socket
import ssl
import struct
import urllib.error

import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.serving import client, transport
from semisam_tf.serving.transport import Answer, Endpoint, ServerError, UnavailableError, ask, parse_url, readable


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8501/v1/models/left_atrium", Endpoint("http", "localhost", 8501, "left_atrium")),
        ("https://host/v1/models/m/", Endpoint("https", "host", 443, "m")),
        ("grpc://10.0.0.1/left_atrium", Endpoint("grpc", "10.0.0.1", 8500, "left_atrium")),
        ("grpcs://[::1]:9/m-2.x", Endpoint("grpcs", "::1", 9, "m-2.x")),
    ],
)
def test_urls(url, expected):
    assert parse_url(url) == expected


@pytest.mark.parametrize("url", ["", "localhost:8501", "ftp://h/m", "http://h:8501", "http://h:x/m", "http://h/a/b"])
def test_a_wrong_url_is_answered_with_the_right_form(url):
    with pytest.raises(ValueError, match=r"Expected --url=http://HOST:8501/v1/models/NAME .* Received"):
        parse_url(url)


class Clock:
    """Time that passes only while sleeping."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, pause_s):
        self.pauses.append(pause_s)
        self.now += pause_s


ENDPOINT = Endpoint("http", "h", 1, "m")


def test_unavailable_is_tried_again_with_growing_pauses():
    clock, left = Clock(), []

    def once(endpoint, scan, timeout_s):
        left.append(timeout_s)
        if len(left) < 7:
            raise UnavailableError("not yet.")
        return Answer(b"mask", 0.5)

    assert ask(ENDPOINT, b"", 60, once=once, sleep=clock.sleep, clock=clock).mask == b"mask"
    assert clock.pauses == [0.5, 1, 2, 4, 8, 8]
    assert left == [60, 59.5, 58.5, 56.5, 52.5, 44.5, 36.5]


def test_it_gives_up_in_time_and_says_so():
    clock = Clock()

    def once(endpoint, scan, timeout_s):
        raise UnavailableError("not there.")

    with pytest.raises(UnavailableError, match=r"not there\. Gave up after 4 attempts in 5 s\."):
        ask(ENDPOINT, b"", 5, once=once, sleep=clock.sleep, clock=clock)
    assert clock.now < 5


def test_a_refusal_is_not_repeated():
    calls = []

    def once(endpoint, scan, timeout_s):
        calls.append(1)
        raise ServerError("no")

    with pytest.raises(ServerError, match="no"):
        ask(ENDPOINT, b"", 60, once=once)
    assert len(calls) == 1


def test_nobody_listening_is_unavailable():
    with pytest.raises(UnavailableError, match="Connection refused"):
        transport.ask_rest(Endpoint("http", "127.0.0.1", 1, "m"), b"scan", 5)


def test_the_graphs_words_are_what_the_user_reads():
    text = (
        "Graph execution error:\n...\nassertion failed: [Expected 1 image channels, as in training. Received:] [3]\n"
        "\t [[{{node Assert}}]]"
    )
    assert readable(text) == "Expected 1 image channels, as in training. Received: 3."
    assert readable("Something else\nand more") == "Something else"


def test_scans_of_other_formats_travel_as_nifti_and_masks_come_back_as_the_suffix_says(tmp_path):
    image = sitk.GetImageFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    image.SetSpacing((0.5, 2, 3))
    image.SetOrigin((-4, 5, 6))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    data = client.read_scan(tmp_path / "scan.nrrd")
    assert data[344:348] == b"n+1\0"
    for name in ("mask.nii", "mask.nii.gz", "mask.nrrd", "mask.mha"):
        client.write_mask(tmp_path / name, data)
        back = sitk.ReadImage(str(tmp_path / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(image))
        np.testing.assert_allclose(back.GetOrigin(), image.GetOrigin(), atol=1e-6)
        np.testing.assert_allclose(back.GetDirection(), image.GetDirection(), atol=1e-6)
    assert gzip.decompress((tmp_path / "mask.nii.gz").read_bytes()) == data
    with pytest.raises(ValueError, match="a format that ITK reads and writes"):
        client.write_mask(tmp_path / "mask.xyz", data)
    assert not list(tmp_path.glob("*xyz*"))


def test_words_without_a_flag_are_scan_and_mask():
    assert client.with_flags(["a.nii", "--url=u", "b.nii"]) == ["--url=u", "--scan=a.nii", "--mask=b.nii"]
    assert client.with_flags(["--url", "u", "a.nii", "b.nii"]) == ["--url", "u", "--scan=a.nii", "--mask=b.nii"]
    assert client.with_flags(["--scan=a.nii", "b.nii"]) == ["--scan=a.nii", "--mask=b.nii"]
    assert client.with_flags(["--url"]) == ["--url"]
    assert client.with_flags(["--", "-a.nii"]) == ["--scan=-a.nii"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--url is needed"),
        (["--url=http://h/m"], "--scan is needed"),
        (["--url=h", "a", "b.nii"], "Expected --url=http"),
        (["--url=http://h/m", "--timeout_s=0", "a", "b"], "--timeout_s"),
        (["--url=http://h/m", "--timeout_s=inf", "a", "b"], "--timeout_s: expected a finite time"),
        (["--url", "http://h/m", "--timeout_s", "nan", "a", "b"], "--timeout_s: expected a finite time"),
        (["--url=http://h/m", "a"], "--mask is needed"),
        (["--url=http://h/m", "a"], "Received: SCAN 'a' and no MASK"),
        (["--url=http://h/m", "a", "b", "c"], "3 words beside the flags"),
        (["--url=http://h/m", "a", "b.mhd"], "headers of a second file). Received: 'b.mhd'"),
        (["--url=http://h/m", "a", "b.nhdr"], "expected one file that ends in .nii, .nii.gz, .nrrd, .mha"),
        (["--url=http://h/m", "a", "none/there/b.nii"], "in a folder that exists"),
    ],
)
def test_wrong_flags_of_the_client(words, message, capsys):
    assert client.main(words) == 2
    assert message in capsys.readouterr().err


def nrrd(path, *fields):
    lines = ["NRRD0004", "type: short", "dimension: 3", "sizes: 4 3 2", "encoding: raw", "endian: little", *fields]
    path.write_bytes("\n".join(lines).encode() + b"\n\n" + bytes(48))
    return path


def test_a_scan_without_spacing_is_not_sent_as_1_mm(tmp_path):
    with pytest.raises(ValueError, match=r"voxel spacing: .*a\.nrrd stores none"):
        client.read_scan(nrrd(tmp_path / "a.nrrd"))
    (tmp_path / "empty.nrrd").touch()
    with pytest.raises(ValueError, match=r"a format that ITK reads and writes. Received: empty\.nrrd"):
        client.read_scan(tmp_path / "empty.nrrd")


def test_a_scan_without_orientation_is_sent_without(tmp_path):
    """ITK writes LPS where a file says nothing, and the server would turn the scan by it."""
    turned = ("space: left-posterior-superior", "space directions: (1,0,0) (0,2,0) (0,0,3)")
    for fields, codes in ((turned, (1, 1)), (("spacings: 1 2 3",), (0, 0))):
        data = client.read_scan(nrrd(tmp_path / "a.nrrd", *fields))
        assert struct.unpack_from("<2h", data, 252) == codes
        assert struct.unpack_from("<3f", data, 80) == (1, 2, 3)


def test_a_folder_is_no_scan(tmp_path, capsys):
    assert client.main(["--url", "http://h/m", str(tmp_path), str(tmp_path / "b.nii")]) == 1
    assert "Expected one file as the scan. Received: a folder" in capsys.readouterr().err


def test_every_retry_is_logged_with_its_reason(caplog):
    clock = Clock()

    def once(endpoint, scan, timeout_s):
        raise UnavailableError("still loading.")

    with caplog.at_level("WARNING"), pytest.raises(UnavailableError):
        ask(ENDPOINT, b"", 5, once=once, sleep=clock.sleep, clock=clock)
    assert [record.getMessage() for record in caplog.records] == [
        f"Attempt {n}: still loading. Again in {pause:g} s." for n, pause in ((1, 0.5), (2, 1), (3, 2))
    ]


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        (socket.gaierror(-2, "Name or service not known"), "Expected a host that can be found.* Received: 'h'"),
        (ssl.SSLCertVerificationError(1, "self-signed"), "Expected a TLS certificate of h:1 .* Received: .*self-"),
    ],
)
def test_hosts_and_certificates_that_stay_wrong_are_not_tried_again(monkeypatch, reason, message):
    def urlopen(*_, **__):
        raise urllib.error.URLError(reason)

    monkeypatch.setattr(transport.urllib.request, "urlopen", urlopen)
    with pytest.raises(ServerError, match=message) as caught:
        ask(ENDPOINT, b"", 60, sleep=lambda _: pytest.fail("tried again"))
    assert not isinstance(caught.value, UnavailableError)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("DNS resolution failed for h:1: C-ares status is not ARES_SUCCESS", ServerError),
        ("Ssl handshake failed: SSL_ERROR_SSL: CERTIFICATE_VERIFY_FAILED: unable to get issuer", ServerError),
        ("failed to connect to all addresses; Connection refused", UnavailableError),
    ],
)
def test_what_grpc_means_by_unavailable(text, kind):
    assert type(transport._unavailable(ENDPOINT, text)) is kind
