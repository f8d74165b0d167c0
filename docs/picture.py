"""Draws the answer of `ampoule extract --json NOTE` as an SVG: python docs/picture.py NOTE < answer.json > docs/annotated.svg"""
import html
import json
import sys

COLOURS = {"Chemical": ("#d8f0e3", "#11744b"), "Disease": ("#fde3de", "#b03a22")}
WIDTH, STEP, LINE, LEFT, TOP = 78, 9.03, 46, 24, 46


def main():
    note, entities = sys.argv[1].encode(), json.load(sys.stdin)["entities"]
    pieces, at = [], 0
    for e in entities:
        pieces += [(note[at:e["start"]].decode(), None), (note[e["start"]:e["end"]].decode(), e)]
        at = e["end"]
    pieces.append((note[at:].decode(), None))
    row = column = 0
    out = []
    for text, entity in pieces:
        words = [text] if entity else text.replace(" ", " \0").split("\0")
        for word in words:
            if column + len(word.rstrip()) > WIDTH:
                row, column = row + 1, 0
            x, y = LEFT + column * STEP, TOP + row * LINE
            if entity:
                fill, ink = COLOURS[entity["label"]]
                out.append(f'<rect x="{x - 3:.1f}" y="{y - 17}" width="{len(word) * STEP + 6:.1f}" height="24" rx="4" fill="{fill}"/>')
                out.append(f'<text x="{x:.1f}" y="{y + 20}" class="l" fill="{ink}">{entity["label"]} {entity["score"]:.2f}</text>')
            out.append(f'<text x="{x:.1f}" y="{y}" xml:space="preserve">{html.escape(word)}</text>')
            column += len(word)
    width, height = LEFT * 2 + WIDTH * STEP, TOP + row * LINE + 40
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-family="ui-monospace, monospace" font-size="15">')
    print("<style>.l { font-size: 11px; font-family: sans-serif }</style>")
    print(f'<rect width="100%" height="100%" rx="8" fill="#ffffff" stroke="#d0d7de"/>')
    print("\n".join(out))
    print("</svg>")


main()
