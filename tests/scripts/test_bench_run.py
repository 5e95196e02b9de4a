def test_memory_is_read_at_each_eighth_of_a_run(prepare_module, monkeypatch):
    read = iter(range(1000))  # instead of the process's memory: how often it was asked for
    monkeypatch.setattr(prepare_module, "anonymous", lambda: next(read))
    found = prepare_module.measure(samples=200, chunk=8, times=2)
    assert found["held"] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_each_sample_is_predicted_as_often_as_asked(prepare_module):
    stream = prepare_module.stream_of(samples=20, chunk=8, times=2)
    assert stream.shifts == (0, 8)
    assert len(stream) == 3
