// Markdown to DOM nodes. Text only ever becomes text nodes and a few harmless elements are made by name, so nothing that
// a model writes can be more than something to read. Works on half an answer: what is not closed yet is shown open.

const DEEPEST = 8; // nested quotes and lists; deeper ones are shown as they are written

const INLINE = new RegExp(
  [
    "\\\\([!-/:-@[-`{-~])", // 1 a character that was escaped
    "(?<!`)(`+)(?!`)(.+?)(?<!`)\\2(?!`)", // 2 fence, all of it, 3 code
    "\\*\\*(?=\\S)(.+?)(?<=\\S)\\*\\*", // 4 strong
    "(?<!\\w)__(?=\\S)(.+?)(?<=\\S)__(?!\\w)", // 5 strong
    "\\*(?=[^\\s*])(.+?)(?<=[^\\s*])\\*(?!\\*)", // 6 emphasis
    "(?<!\\w)_(?=[^\\s_])(.+?)(?<=[^\\s_])_(?!\\w)", // 7 emphasis
    "~~(?=\\S)(.+?)(?<=\\S)~~", // 8 struck out
    "!?\\[([^\\[\\]]*)\\]\\(([^()\\s]*(?:\\([^()\\s]*\\)[^()\\s]*)?)\\)", // 9 text, 10 address
    "<?(https?://[^\\s<>]*[^\\s<>.,:;!?)\\]'\"])>?", // 11 a bare address
    "(\\n)", // 12
  ].join("|"),
  "gs",
);

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)\s*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+(.*)|)$/;
const TABLE_RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

export function render(text) {
  const root = document.createDocumentFragment();
  blocks(root, text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n"), 0);
  return root;
}

function make(parent, name) {
  return parent.appendChild(document.createElement(name));
}

function blocks(parent, lines, depth) {
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    let match;
    if (!line.trim()) {
      i += 1;
    } else if ((match = FENCE.exec(line))) {
      i = fenced(parent, lines, i, match);
    } else if ((match = HEADING.exec(line))) {
      inline(make(parent, `h${match[1].length}`), match[2]);
      i += 1;
    } else if (RULE.test(line)) {
      make(parent, "hr");
      i += 1;
    } else if (depth < DEEPEST && QUOTE.test(line)) {
      const inner = [];
      for (; i < lines.length && (match = QUOTE.exec(lines[i])); i += 1) inner.push(match[1]);
      blocks(make(parent, "blockquote"), inner, depth + 1);
    } else if (depth < DEEPEST && ITEM.test(line)) {
      i = list(parent, lines, i, depth);
    } else if (line.includes("|") && TABLE_RULE.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      i = table(parent, lines, i);
    } else {
      const begin = i;
      do i += 1;
      while (i < lines.length && lines[i].trim() && !startsBlock(lines[i], depth));
      inline(make(parent, "p"), lines.slice(begin, i).map((text) => text.trim()).join("\n"));
    }
  }
}

function startsBlock(line, depth) {
  if (FENCE.test(line) || HEADING.test(line) || RULE.test(line)) return true;
  return depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line));
}

function fenced(parent, lines, i, [, fence, language]) {
  const code = [];
  for (i += 1; i < lines.length; i += 1) {
    const end = lines[i].trim();
    if (end.length >= fence.length && end === fence[0].repeat(end.length)) {
      i += 1;
      break;
    }
    code.push(lines[i]);
  }
  const element = make(make(parent, "pre"), "code");
  element.textContent = code.join("\n");
  if (language) element.dataset.language = language;
  return i;
}

function list(parent, lines, i, depth) {
  const [, indent, mark] = ITEM.exec(lines[i]);
  const ordered = /\d/.test(mark);
  const element = make(parent, ordered ? "ol" : "ul");
  if (ordered && parseInt(mark, 10) !== 1) element.start = parseInt(mark, 10);
  while (i < lines.length) {
    const match = ITEM.exec(lines[i]);
    if (!match || /\d/.test(match[2]) !== ordered || RULE.test(lines[i])) break;
    if (match[1].length < indent.length) break;
    const inner = [match[4] ?? ""];
    const least = match[1].length + 2;
    for (i += 1; i < lines.length; i += 1) {
      const own = lines[i].length - lines[i].trimStart().length;
      const blank = !lines[i].trim();
      if (blank ? !belongs(lines, i, least) : own < least && startsBlock(lines[i], 0)) break;
      inner.push(lines[i].slice(Math.min(own, least)));
    }
    item(make(element, "li"), inner, depth + 1);
    while (i < lines.length && !lines[i].trim() && ITEM.test(lines[i + 1] ?? "")) i += 1;
  }
  return i;
}

// Whether what follows a blank line still is part of an item that is indented by `least`.
function belongs(lines, i, least) {
  while (i < lines.length && !lines[i].trim()) i += 1;
  return i < lines.length && lines[i].length - lines[i].trimStart().length >= least;
}

function item(element, lines, depth) {
  blocks(element, lines, depth);
  const first = element.firstElementChild;
  if (first?.nodeName === "P") first.replaceWith(...first.childNodes); // no paragraph around a tight item's text
}

function cells(line) {
  return line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replace(/\\\|/g, "|"));
}

function table(parent, lines, i) {
  const wide = make(parent, "div");
  wide.className = "wide";
  const element = make(wide, "table");
  const heads = cells(lines[i]);
  const row = make(make(element, "thead"), "tr");
  for (const head of heads) inline(make(row, "th"), head);
  const body = make(element, "tbody");
  for (i += 2; i < lines.length && lines[i].includes("|"); i += 1) {
    const found = cells(lines[i]);
    const line = make(body, "tr");
    for (let k = 0; k < heads.length; k += 1) inline(make(line, "td"), found[k] ?? "");
  }
  return i;
}

function inline(parent, text, depth = 0) {
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index < end) continue;
    parent.append(text.slice(end, match.index));
    end = match.index + match[0].length;
    const [whole, escaped, , code, strong, strong2, em, em2, struck, label, address, bare, newline] = match;
    if (escaped !== undefined) parent.append(escaped);
    else if (code !== undefined) make(parent, "code").textContent = code.replace(/^ (.*[^ ].*) $/s, "$1");
    else if (newline !== undefined) make(parent, "br");
    else if (depth >= DEEPEST) parent.append(whole);
    else if (strong !== undefined || strong2 !== undefined) inline(make(parent, "strong"), strong ?? strong2, depth + 1);
    else if (em !== undefined || em2 !== undefined) inline(make(parent, "em"), em ?? em2, depth + 1);
    else if (struck !== undefined) inline(make(parent, "del"), struck, depth + 1);
    else if (bare !== undefined) link(parent, bare, bare);
    else link(parent, label || address, address);
  }
  parent.append(text.slice(end));
}

function link(parent, label, address) {
  // Only what leads to a web page or a mailbox is a link; `javascript:` and the like stay text.
  if (!/^(https?:\/\/|mailto:)/i.test(address)) {
    parent.append(label);
    return;
  }
  const element = make(parent, "a");
  element.href = address;
  element.rel = "noreferrer noopener nofollow";
  element.target = "_blank";
  element.textContent = label;
}
