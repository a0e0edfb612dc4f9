import json
import re

from hne_tf.report import page


def embedded(text):
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(data)


def test_whatever_names_hold_stays_data():
    runs = [{"name": "</script><script>alert(1)</script>", "text": "{{ script }} <!-- & \u2028"}]
    text = page.render("<b>&", runs)
    assert embedded(text) == {"runs": runs}
    assert text.count("<script") == 2
    assert "<title>&lt;b&gt;&amp;</title>" in text
    assert "<h1>&lt;b&gt;&amp;</h1>" in text


def test_the_page_loads_nothing():
    text = page.render("Title", [])
    policy = re.search(r'Content-Security-Policy"\s+content="([^"]*)"', text).group(1)
    assert "default-src 'none'" in policy
    assert not re.search(r"""(src|href)=["']|@import|url\(|import\(|fetch\(""", text)
    # The namespaces of SVG and HTML are names, not addresses.
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xhtml",
    }
    assert not re.search(r"\{\{ \w+ \}\}", text)
