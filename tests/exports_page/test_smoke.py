import time


def test_smoke(airflow, shop, keys):
    print(airflow.url)
    s = airflow.session("admin")
    for path in ["list", "list", "static/exports.js", "details?manifest=s3://%s/%s.manifest.json" % (shop, keys[-1])]:
        t = time.time()
        r = s.get(f"{airflow.url}/exports/{path}")
        print(
            path,
            r.status_code,
            len(r.content),
            round(time.time() - t, 3),
            r.text[:1500] if r.status_code != 200 or "details" in path else r.text[:700],
        )
    r = s.get(f"{airflow.url}/exports/orders.csv")
    print(r.status_code, r.headers, len(r.content))
    r = s.get(f"{airflow.url}/exports/files", params={"manifest": "s3://%s/%s.manifest.json" % (shop, keys[-1])})
    print(r.status_code, r.headers, len(r.content))
    r = s.post(f"{airflow.url}/exports/verify", json={"manifest": "s3://%s/%s.manifest.json" % (shop, keys[-1])})
    print(r.status_code, r.text)
    print(s.get(f"{airflow.url}/api/v2/plugins").text[:3000])
