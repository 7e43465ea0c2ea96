"""Pictures: settings of matplotlib, which are the whole process's, are as they were after use."""

from __future__ import annotations

import threading

from matplotlib import rcParams

from mmedpo.data.plots import plot_settings


def test_settings_of_threads_do_not_mix_and_none_stays() -> None:
    seen: list[str] = []
    begun = threading.Event()

    def other() -> None:
        begun.set()
        with plot_settings({"axes.titlelocation": "right"}):
            seen.append(rcParams["axes.titlelocation"])

    thread = threading.Thread(target=other)
    with plot_settings({"axes.titlelocation": "left"}):
        thread.start()
        assert begun.wait(10)
        thread.join(0.2)  # it waits for this thread's settings to be restored
        assert not seen and rcParams["axes.titlelocation"] == "left"
    thread.join(10)
    assert seen == ["right"] and rcParams["axes.titlelocation"] == "center"
