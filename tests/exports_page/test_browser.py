"""The page in a real Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from demo import services
from tests.conftest import content
from tests.exports_page import browser as chromium
from tests.exports_page.conftest import DAYS
from tests.exports_page.server import Airflow, relist

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(chromium.chromium() is None and not chromium.must_be_there(), reason=chromium.MISSING)

# Of the background and of the text, from 0 to 765; the colours may be written in any of CSS's ways.
BRIGHTNESS = """it => ["backgroundColor", "color"].map((name) => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d");
    canvas.fillStyle = getComputedStyle(it)[name];
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
    return red + green + blue;
})"""

# As a click on one of Airflow's own links does. To load Airflow anew takes ten times as long.
GO = """path => {
    history.pushState({}, "", path);
    dispatchEvent(new PopStateEvent("popstate"));
}"""
OURS = "table.exports, .empty"

WINDOWS: dict[str, Page] = {}

Open = Callable[[str], "Page"]
Put = Callable[[str, bytes], str]


@pytest.fixture(scope="module")
def running() -> Iterator[Browser]:
    """A Chromium for all tests here."""
    if chromium.chromium() is None:
        pytest.fail(chromium.MISSING)
    with chromium.browser() as started:
        yield started
        WINDOWS.clear()


@pytest.fixture
def window(running: Browser, airflow: Airflow) -> Iterator[Open]:
    """Gives the window of a user, who goes from one page to the other in it."""
    relist()

    def window_of(user: str) -> Page:
        if user not in WINDOWS:
            WINDOWS[user] = chromium.context_of(running, airflow, user).new_page()
        return WINDOWS[user]

    yield window_of
    for page in WINDOWS.values():
        page.set_viewport_size(chromium.SIZE)


def show(page: Page, airflow: Airflow, path: str = "plugin/exports", load: bool = False) -> None:
    """Go to a page of Airflow's and wait for ours on it.

    :param load: load all of it, as for an address that was typed; a new window does so in any case.
    """
    if load or not page.url.startswith(airflow.url):
        page.goto(f"{airflow.url}/{path}")
    else:
        page.evaluate(GO, "/plugin/none")
        page.wait_for_selector(OURS, state="detached")
        page.evaluate(GO, f"/{path}")
    page.wait_for_selector(OURS)


def show_series(page: Page, airflow: Airflow, series: str) -> None:
    """Go to the page, and choose a series on it."""
    show(page, airflow)
    page.get_by_label("Series").select_option(series)
    page.locator("caption", has_text=f" of {series}").wait_for()


def test_tiles_charts_and_table(window: Open, airflow: Airflow, keys: list[str]) -> None:
    """Airflow's navigation leads to the page: five tiles, three charts with missing nights, a table that pages."""
    page = window("viewer")
    page.goto(airflow.url)
    page.get_by_role("link", name="Exports").click()
    page.wait_for_selector("table.exports")
    assert page.locator(".tile").count() == 5
    assert page.locator(".tile dt").all_inner_texts() == ["Newest", "Rows", "Size", "Time", "Unusual"]
    charts = page.locator("figure svg")
    assert charts.count() == 3
    assert "2 missing" in str(charts.first.get_attribute("aria-label"))
    for name, count in (("bar", DAYS - 2), ("missing", 2), ("mark", 4)):
        assert charts.first.locator(f".{name}").count() == count
    assert page.locator(".unusual li").count() == 4
    assert page.locator("button.file").count() == 20
    page.get_by_role("button", name="Older").click()
    page.get_by_text("Page 2 of 2").wait_for()
    assert page.locator("button.file").count() == DAYS - 2 - 20
    assert "UTC" in str(page.locator("td time").first.get_attribute("title"))


def test_details_by_keyboard(window: Open, airflow: Airflow, keys: list[str]) -> None:
    """Enter opens an entry: columns, files with SHA-256, checks, and lines for four tools that arrows go through."""
    page = window("user")
    show(page, airflow)
    page.locator("button.file").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("pre")
    assert page.locator("button.file").first.get_attribute("aria-expanded") == "true"
    text = page.locator(".details").inner_text()
    for part in ("customer_email", "timestamp with time zone", "same snapshot", "PostgreSQL", "WAL"):
        assert part in text
    tabs = page.get_by_role("tab")
    assert tabs.all_inner_texts() == ["DuckDB", "pandas", "psql", "Redshift"]
    tabs.first.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert "\\copy" in page.locator("pre").inner_text()


def test_charts_and_pages_by_keyboard(window: Open, airflow: Airflow, keys: list[str]) -> None:
    """Tab reaches one bar of each chart, arrows the others, Enter opens one; what is drawn anew keeps the focus."""
    page = window("viewer")
    show(page, airflow)
    chart = page.locator("figure svg").first
    assert chart.locator("[tabindex='0']").count() == 1
    chart.locator("[tabindex='0']").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert chart.locator(".touch").nth(1).evaluate("it => it === it.getRootNode().activeElement")
    page.keyboard.press("Enter")
    page.wait_for_selector("pre")
    opened = page.locator("button.file[aria-expanded=true]")
    assert keys[1].rsplit("/", 1)[1] in opened.inner_text()
    assert opened.evaluate("it => it === it.getRootNode().activeElement")
    page.get_by_role("button", name="Newer").press("Enter")
    page.get_by_text("Page 1 of 2").wait_for()
    assert page.get_by_role("button", name="Older").evaluate("it => it === it.getRootNode().activeElement")
    page.get_by_role("button", name="Reload").press("Enter")
    page.locator("main[aria-busy=false]").wait_for()
    assert page.get_by_role("button", name="Reload").evaluate("it => it === it.getRootNode().activeElement")


def test_the_charts_of_hours(window: Open, airflow: Airflow, put: Put, document: dict[str, Any]) -> None:
    """Each hour has a bar that says so; one that is missing is drawn, and named by its time."""
    for hour in (*range(8), 9, 10):
        put(f"hours/20261124T{hour:02}00.csv", json.dumps(document).encode())
    page = window("viewer")
    show_series(page, airflow, "hours/*.csv")
    chart = page.locator("figure svg").first
    assert "10 exports from 2026-11-24 00:00 to 2026-11-24 10:00" in str(chart.get_attribute("aria-label"))
    assert chart.locator(".bar").count() == 10
    assert str(chart.locator(".touch").nth(2).get_attribute("aria-label")).startswith("2026-11-24 02:00: ")
    assert chart.locator(".missing title").all_text_contents() == ["2026-11-24 08:00: no export"]
    assert page.locator(".unusual li").all_inner_texts() == ["▲ 2026-11-24 09:00 1 export is missing before it."]


@pytest.mark.parametrize("width", [1440, 390])
def test_what_a_screen_reader_is_given(window: Open, airflow: Airflow, keys: list[str], width: int) -> None:
    """Chromium's accessibility tree: a table, bars that say day and figure, exact times, a name for each control."""
    page = window("viewer")
    page.set_viewport_size({"width": width, "height": 844})
    show(page, airflow)
    page.locator("button.file").first.click()
    page.wait_for_selector("pre")
    found = given(page)
    names = {role: [name for its, name in found if its == role] for role in {role for role, _ in found}}
    assert any(name.startswith("28 exports of orders/") for name in names["table"])
    assert len(names["row"]) > 20
    assert len(names["cell"]) > 100
    assert {"Rows", "SHA-256"} <= set(names["columnheader"])
    newest = f"{keys[-1][-12:-8]}-{keys[-1][-8:-6]}-{keys[-1][-6:-4]}"
    bars = [name for name in names["button"] if name.startswith(f"{newest}: ")]
    assert [name[-2:] for name in bars[1:]] == ["MB", " s"]
    assert [name.split(" of ")[0] for name in names["group"] if "exports from" in name] == ["Rows", "Size", "Time"]
    assert f", {newest} 02:00:" in " ".join(names["StaticText"])
    assert {"combobox", "tablist", "tab", "tabpanel", "status", "heading"} <= names.keys()
    assert all(name for role in ("button", "link", "combobox", "tab", "tabpanel", "heading") for name in names[role])


def given(page: Page) -> list[tuple[str, str]]:
    """Role and name of all that a screen reader is given."""
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]


def test_the_operators_link_leads_to_the_entry(window: Open, airflow: Airflow, shop: str, keys: list[str]) -> None:
    """The path that the operator gives opens the page with that export's details, wherever in the table it is."""
    from types import SimpleNamespace

    from postgres_to_s3.summary import link

    page = window("viewer")
    show(page, airflow, link(SimpleNamespace(manifest_url=f"s3://{shop}/{keys[2]}.manifest.json")), load=True)
    page.wait_for_selector("pre")
    assert keys[2].rsplit("/", 1)[1] in page.locator("button.file[aria-expanded=true]").inner_text()


def test_dark_and_phone(window: Open, airflow: Airflow, keys: list[str]) -> None:
    """It is dark where Airflow is; on 390 pixels nothing is wider than the screen."""
    page = window("admin")  # which stays dark
    page.emulate_media(color_scheme="dark")
    page.add_init_script("localStorage.setItem('theme', 'dark')")
    page.set_viewport_size({"width": 390, "height": 844})
    show(page, airflow, load=True)
    page.locator("button.file").first.click()
    page.wait_for_selector("pre")
    ground, text = page.locator(".page").evaluate(BRIGHTNESS)
    assert ground < 200 < 550 < text
    too_wide = page.locator(".page").evaluate("it => it.scrollWidth > it.clientWidth")
    assert not too_wide


def test_the_tab_of_a_dag(window: Open, airflow: Airflow, keys: list[str]) -> None:
    """Each DAG has the tab; one that exports nothing says so, and links to all exports."""
    page = window("viewer")
    show(page, airflow, "dags/orders_export/plugin/dag-exports")
    assert page.locator("button.file").count() == 20
    show(page, airflow, "dags/orders_ingest/plugin/dag-exports")
    assert "orders_ingest has no exports" in page.locator(".empty").inner_text()
    page.get_by_role("link", name="All exports").click()
    page.wait_for_selector("table.exports")


def test_a_download_that_succeeds(
    window: Open, airflow: Airflow, shop: str, keys: list[str], client: Any, tmp_path: Path
) -> None:
    """The file that the browser saves is the object, byte for byte; verifying says so in the table."""
    page = window("user")
    show(page, airflow)
    name = keys[-1].rsplit("/", 1)[1]
    with page.expect_download() as found:
        page.get_by_role("button", name=f"Download {name}").first.click()
    assert found.value.failure() is None
    assert found.value.suggested_filename == name
    assert Path(found.value.path()).read_bytes() == content(client, shop, keys[-1])
    page.get_by_role("button", name=f"Verify {name}").click()
    page.get_by_text("✓ rows, SHA-256").wait_for()


def test_an_export_of_several_files(
    window: Open, airflow: Airflow, shop: str, keys: list[str], client: Any, put: Put, document: dict[str, Any]
) -> None:
    """Its row leads to its files, since the first alone is not the export; the figures of a young series are right."""
    other = json.loads(content(client, shop, f"{keys[0]}.manifest.json"))
    document |= {name: document[name] + other[name] for name in ("files", "entries", "rows", "bytes")}
    document |= {"started_at": "2026-11-01T02:00:00.000000+00:00", "finished_at": "2026-11-01T02:01:59.700000+00:00"}
    for number in (1, 2):
        put(f"split/split-2026110{number}.csv", json.dumps(document).encode())
    page = window("user")
    show_series(page, airflow, "split/split-*.csv")
    assert "first of this series" not in page.locator(".tiles").inner_text()
    assert "2 min 0 s" in page.locator("table.exports tbody tr").first.inner_text()
    assert page.get_by_role("button", name="Download split").count() == 0
    page.get_by_role("button", name="The files of").first.click()
    page.wait_for_selector("pre")
    with page.expect_download() as found:
        page.get_by_role("button", name=f"Download {keys[0].rsplit('/', 1)[1]}").click()
    assert Path(found.value.path()).read_bytes() == content(client, shop, keys[0])


def test_verifying_counts_no_rows(window: Open, airflow: Airflow, put: Put, document: dict[str, Any]) -> None:
    """The checksum says nothing about rows that the database did not count."""
    put("uncounted/a.csv", json.dumps(document | {"rows_verified": False}).encode())
    page = window("user")
    show_series(page, airflow, "uncounted/a.csv")
    cell = page.locator("td[data-label=Verified]")
    assert cell.inner_text() == "not counted"
    page.get_by_role("button", name="Verify").click()
    page.locator("td[data-label=Verified]", has_text="SHA-256").wait_for()
    assert cell.inner_text() == "✓ SHA-256"


def test_a_row_is_of_one_export(
    window: Open, airflow: Airflow, shop: str, keys: list[str], client: Any, put: Put, document: dict[str, Any]
) -> None:
    """What a newer export has replaced since is not verified, shown or downloaded under the figures of the old one."""
    put("nightly/a.csv", json.dumps(document).encode())
    page = window("user")
    show_series(page, airflow, "nightly/a.csv")
    page.get_by_role("button", name="Verify").click()
    page.get_by_text("✓ rows, SHA-256").wait_for()
    put("nightly/a.csv", content(client, shop, f"{keys[0]}.manifest.json"))
    replaced = "nightly/a.csv.manifest.json was replaced."
    status = page.locator(".notice[role=status]")
    for action in ("Verify", "Download"):
        status.evaluate("it => it.textContent = ''")
        page.get_by_role("button", name=action).first.click()
        status.get_by_text(replaced).wait_for()
    page.locator("button.file").click()
    page.locator("tr.below .notice").wait_for()
    assert replaced in page.locator("tr.below .notice").inner_text()
    assert page.locator("tr.below pre").count() == 0


def test_the_live_table(window: Open, airflow: Airflow, keys: list[str], table: int) -> None:
    """The form downloads what was asked for; what the server refuses is a sentence on the page, and no file."""
    page = window("user")
    show(page, airflow)
    page.get_by_text("Orders as they are now").click()
    page.get_by_label("paid").check()
    with page.expect_download() as found:
        page.get_by_role("button", name="Download orders.csv").click()
    assert found.value.failure() is None
    lines = Path(found.value.path()).read_text().splitlines()
    assert lines[0] == "id,customer_email,total_cents,status,created_at"
    assert ",paid," in lines[1]
    page.get_by_label("Created from").fill("2026-11-02T00:00:00")
    page.get_by_label("Created before").fill("2026-11-01T00:00:00")
    page.get_by_role("button", name="Download orders.csv").click()
    page.get_by_text("created_from='2026-11-02T00:00:00+00:00' is not allowed").wait_for()


@pytest.mark.parametrize("kind", ["live", "file"])
def test_a_download_that_fails(
    window: Open, airflow: Airflow, keys: list[str], table: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that breaks off is a failed download to the browser, not a short file."""
    from exports_page.published import PublishedFile
    from orders_live.reading import LiveOrders

    reading: Any = LiveOrders if kind == "live" else PublishedFile
    read, given = reading.read, []

    def failing(self: Any) -> bytes:
        given.append(1)
        if len(given) > 3:
            raise RuntimeError("this is the test's")
        return bytes(read(self))

    monkeypatch.setattr(reading, "read", failing)
    page = window("user")
    show(page, airflow)
    page.get_by_text("Orders as they are now").click()
    button = "Download orders.csv" if kind == "live" else f"Download {keys[-1].rsplit('/', 1)[1]}"
    with page.expect_download() as found:
        page.get_by_role("button", name=button, exact=True).first.click()
    assert found.value.failure()


def test_a_damaged_file_is_a_failed_download(
    window: Open, airflow: Airflow, put: Put, document: dict[str, Any]
) -> None:
    """Though Chromium resumes by itself what broke off before the last bytes."""
    document["files"][0]["sha256"] = "0" * 64
    put("damaged/b.csv", json.dumps(document).encode())
    page = window("user")
    show_series(page, airflow, "damaged/b.csv")
    with page.expect_download() as found:
        page.get_by_role("button", name="Download orders-").click()
    assert found.value.failure()


def test_permissions(window: Open, running: Browser, airflow: Airflow, keys: list[str]) -> None:
    """A viewer has no download and no form, and sees why; without a credential there is Airflow's login."""
    for user, allowed in (("viewer", False), ("user", True), ("admin", True)):
        page = window(user)
        show(page, airflow)
        button = page.get_by_role("button", name="Download").first
        assert button.is_enabled() is allowed
        assert (page.locator("details.live").count() == 1) is allowed
        if not allowed:
            assert "orders_export" in str(button.get_attribute("title"))
    with running.new_page() as page:
        page.goto(f"{airflow.url}/plugin/exports")
        page.locator("input[type=password]").wait_for()


def test_hostile_names_stay_text(window: Open, airflow: Airflow, put: Put, document: dict[str, Any]) -> None:
    """HTML in a manifest makes no element and runs no script, and one that can't be read is a row."""
    html = "<img src=x onerror=document.title='owned'>"
    document |= {"columns": [{"name": html, "type": html}], "unique_key": None, "export_id": html}
    document["run"] |= {"run": html}
    put(f"hostile/{html}-20261101.csv", json.dumps(document).encode())
    put("hostile/<b>x-20261101.csv", b"<b>no</b>")
    page = window("admin")
    show_series(page, airflow, f"hostile/{html}-*.csv")
    page.locator("button.file").first.click()
    page.wait_for_selector("pre")
    assert html in page.locator(".details").inner_text()
    assert page.locator(".page img").count() == 0
    page.get_by_label("Series").select_option("hostile/<b>x-*.csv")
    page.locator("tr.problem", has_text="not JSON").wait_for()
    assert page.title() != "owned"


def test_a_missing_chromium_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has no Chromium learns Debian's package; CI fails without it."""
    assert "apt-get install chromium" in chromium.MISSING
    assert "NEED_CHROMIUM=1" in (services.PROJECT / ".ci" / "run").read_text()
    monkeypatch.setenv("CI", "true")
    assert chromium.must_be_there()
