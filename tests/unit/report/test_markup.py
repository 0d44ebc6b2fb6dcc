"""Text is escaped wherever it stands; only `element`'s own results are markup."""

from semisam_tf.report.markup import Html, details, element, joined, table


def test_text_and_attributes_are_escaped():
    made = element("p", 'a < b & "c"', element("b", "</p>"), class_='x"><script>')
    assert made == ('<p class="x&quot;&gt;&lt;script&gt;">a &lt; b &amp; &quot;c&quot;<b>&lt;/p&gt;</b></p>')


def test_attributes_are_named_as_in_html_and_left_out_where_there_is_none():
    assert element("th", aria_sort="none", data_x=0, hidden=True, title=None, lang=False, viewBox="0 0") == (
        '<th aria-sort="none" data-x="0" hidden viewBox="0 0"></th>'
    )
    assert element("meta", name="a") == '<meta name="a">'


def test_children_may_be_nested_and_absent():
    assert joined(["<", None, [element("i"), ["&"]], Html("<br>")]) == "&lt;<i></i>&amp;<br>"
    # A slice of markup, or markup joined with text by hand, is text again.
    assert element("p", element("b", "x") + "<") == "<p>&lt;b&gt;x&lt;/b&gt;&lt;</p>"


def test_tables_have_a_caption_scopes_and_can_be_reached_by_keyboard():
    made = table("Cap<tion", ["one", element("th", "two", scope="col")], [[element("td", "1")]])
    assert "<caption>Cap&lt;tion</caption>" in made
    assert made.count('scope="col"') == 2
    assert 'tabindex="0" role="region" aria-label="Cap&lt;tion"' in made
    assert "<tfoot>" not in made
    assert details("more", "text") == "<details><summary>more</summary>text</details>"
