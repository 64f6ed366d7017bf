"""The test kit. Import its modules as `tests_support.<module>`.

tests/conftest.py makes that name known, in a checkout of any name and in every xdist worker; for mypy, `scripts/link`
makes `.types/tests_support`.

    upstream    FakeUpstream: a scripted provider made of bytes, over real sockets
    answers     the bytes of well-formed answers: JSON, SSE, chat completions
    clock       FakeClock: time that only moves when told
    downstream  FakeDownstream: a client without a socket
    calls       FakeEndpoint: a provider without a socket, fed with raw bytes
    leaks       tasks and file descriptors before and after
"""
