"use strict";

/* The model, its tokenizer and the drawing of tokens, in plain JavaScript: no page, so that all of it can be called from
   anywhere. Weights are Float32Arrays, activations and sums doubles. */

// ---- weights ------------------------------------------------------------------------------------------------------

function bytesOf(base64) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
  const padding = base64.endsWith("==") ? 2 : base64.endsWith("=") ? 1 : 0;
  const found = new Uint8Array(base64.length / 4 * 3 - padding);
  const step = 1 << 20;  // characters, a multiple of 4
  for (let i = 0, at = 0; i < base64.length; i += step) {
    const part = atob(base64.slice(i, i + step));
    for (let j = 0; j < part.length; j++) found[at++] = part.charCodeAt(j);
  }
  return found;
}

/** IEEE half precision -> Float32Array. */
function fromHalf(words) {
  const found = new Float32Array(words.length);
  for (let i = 0; i < words.length; i++) {
    const sign = words[i] & 0x8000 ? -1 : 1, exponent = words[i] >> 10 & 31, fraction = words[i] & 1023;
    if (exponent === 31) found[i] = fraction ? NaN : sign * Infinity;
    else found[i] = sign * (exponent ? 2 ** (exponent - 25) * (1024 + fraction) : 2 ** -24 * fraction);
  }
  return found;
}

/** A tensor {type, shape} of the page and its base64 -> Float32Array. int8: a float32 scale per row, then the rows. */
function readTensor(tensor, base64) {
  const bytes = bytesOf(base64);
  if (tensor.type === "fp32") return new Float32Array(bytes.buffer);
  if (tensor.type === "fp16") return fromHalf(new Uint16Array(bytes.buffer));
  const [rows, columns] = tensor.shape;
  const scales = new Float32Array(bytes.buffer, 0, rows), steps = new Int8Array(bytes.buffer, 4 * rows);
  const found = new Float32Array(rows * columns);
  for (let row = 0, at = 0; row < rows; row++)
    for (let end = at + columns; at < end; at++) found[at] = scales[row] * steps[at];
  return found;
}

// ---- model --------------------------------------------------------------------------------------------------------

const NO_HISTORY = -1e30, LAYER_NORM_EPSILON = 1e-5;

/** W x for the rows of W. */
function product(W, x, rows) {
  const n = x.length, y = new Float64Array(rows);
  for (let i = 0, at = 0; i < rows; i++) {
    let a = 0, b = 0, c = 0, d = 0, j = 0;
    for (; j + 3 < n; j += 4, at += 4) {
      a += W[at] * x[j];
      b += W[at + 1] * x[j + 1];
      c += W[at + 2] * x[j + 2];
      d += W[at + 3] * x[j + 3];
    }
    for (; j < n; j++, at++) a += W[at] * x[j];
    y[i] = a + b + c + d;
  }
  return y;
}

function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}

/** An RWKV v2, v3 or v4 that reads token after token. */
class Model {
  constructor(config, tensors) {
    this.config = config;
    this.tensors = tensors;
  }

  /** The state before the first token. */
  start() {
    const C = this.config.n_embd, nothing = () => new Float64Array(C);
    return {
      blocks: this.config.blocks.map(() => ({
        att: { last: nothing(), a: nothing(), b: nothing(), p: nothing().fill(NO_HISTORY) },
        ffn: { last: nothing() },
      })),
      keys: [],
      tokens: [],
    };
  }

  /** Read a token: change the state, return the logits of the next one. */
  read(token, state) {
    const { n_embd: C, vocab_size: V, post_norm, blocks, head_qk } = this.config, { tensors } = this;
    let x = Float64Array.from(tensors["emb.weight"].subarray(token * C, (token + 1) * C));
    blocks.forEach((block, l) => {
      const at = `blocks.${l}`, past = state.blocks[l];
      const att = (y) => block.att.kind === "wkv" ? this.timeMix(`${at}.att`, block.att, y, past.att)
        : this.channelMix(`${at}.att`, block.att, y, past.att);
      const ffn = (y) => this.channelMix(`${at}.ffn`, block.ffn, y, past.ffn);
      if (`${at}.ln0.weight` in tensors) x = this.norm(`${at}.ln0`, x);
      if (post_norm) {
        x = this.norm(`${at}.ln1`, x);
        x = this.norm(`${at}.ln2`, add(att(x), x));
        x = add(ffn(x), x);
      } else {
        add(x, att(this.norm(`${at}.ln1`, x)));
        add(x, ffn(this.norm(`${at}.ln2`, x)));
      }
    });
    x = this.norm("ln_out", x);
    const logits = product(tensors["head.weight"], x, V);
    if (head_qk) this.headQK(head_qk, logits, x, token, state);
    return logits;
  }

  norm(name, x) {
    const weight = this.tensors[`${name}.weight`], bias = this.tensors[`${name}.bias`], C = x.length;
    let mean = 0, variance = 0;
    for (const value of x) mean += value / C;
    for (const value of x) variance += (value - mean) ** 2 / C;
    const scale = 1 / Math.sqrt(variance + LAYER_NORM_EPSILON);
    return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
  }

  linear(name, x) {
    const W = this.tensors[`${name}.weight`], bias = this.tensors[`${name}.bias`];
    const y = product(W, x, W.length / x.length);
    return bias ? add(y, bias) : y;
  }

  /** The input x of a sublayer, mixed with the one before it for each of the roles. */
  shifted(name, mix, roles, x, past) {
    const last = past.last;
    past.last = x;
    if (mix.late) return roles.map((role) => x.map((value, i) => i < mix.late[role] ? last[i] : value));
    const blend = (m) => x.map((value, i) => value * m[i] + last[i] * (1 - m[i]));
    if (mix.shared) return roles.fill(blend(this.tensors[`${name}.shift.time_mix`]));
    return roles.map((role) => blend(this.tensors[`${name}.shift.time_mix_${role}`]));
  }

  timeMix(name, mix, x, past) {
    const [xk, xv, xr] = this.shifted(name, mix, ["k", "v", "r"], x, past);
    const k = this.linear(`${name}.key`, xk), v = this.linear(`${name}.value`, xv);
    const y = this.linear(`${name}.receptance`, xr);
    const decay = this.tensors[`${name}.time_decay`], first = this.tensors[`${name}.time_first`];
    const { a, b, p } = past, logEpsilon = Math.log(mix.den_eps);
    for (let i = 0; i < y.length; i++) {
      const key = mix.k_max === null ? k[i] : Math.min(k[i], mix.k_max);
      let top = Math.max(p[i], first[i] + key, logEpsilon);
      let before = Math.exp(p[i] - top), now = Math.exp(first[i] + key - top);
      y[i] = sigmoid(y[i]) * (before * a[i] + now * v[i]) / (before * b[i] + now + Math.exp(logEpsilon - top));
      const faded = p[i] - Math.exp(decay[i]);
      top = Math.max(faded, key);
      before = Math.exp(faded - top);
      now = Math.exp(key - top);
      a[i] = before * a[i] + now * v[i];
      b[i] = before * b[i] + now;
      p[i] = top;
    }
    return this.linear(`${name}.output`, y);
  }

  channelMix(name, mix, x, past) {
    const [xk, xr] = this.shifted(name, mix, ["k", "r"], x, past);
    const hidden = this.linear(`${name}.key`, xk).map((value) => value > 0 ? value * value : 0);
    const r = this.linear(`${name}.receptance`, xr);
    return this.linear(`${name}.value`, hidden).map((value, i) => sigmoid(r[i]) * value);
  }

  /** Add to the logit of each token of the window what the query finds at it. */
  headQK({ dim, window, form }, logits, x, token, state) {
    const q = this.linear("head_qk.q", x);
    state.keys.push(this.linear("head_qk.k", x));
    state.tokens.push(token);
    if (state.keys.length > window) {
      state.keys.shift();
      state.tokens.shift();
    }
    const largest = new Map();
    state.keys.forEach((k, u) => {
      const seen = state.tokens[u];
      const c = product(k, q, 1)[0] / dim;
      if (form === "sum") logits[seen] += c;
      else largest.set(seen, Math.max(c, largest.get(seen) ?? -Infinity));
    });
    for (const [seen, c] of largest) logits[seen] += c;
  }
}

// ---- drawing ------------------------------------------------------------------------------------------------------

/** Probabilities to draw from: the filters look at the model's own, temperature changes what they keep. */
function filtered(logits, { temperature, top_k, top_p, top_p_x, top_a, top_a_power = 2 }) {
  const most = logits.reduce((a, b) => Math.max(a, b)), best = logits.indexOf(most);
  if (temperature === 0) return logits.map((_, i) => i === best ? 1 : 0);
  const p = softmax(logits, 1);
  const kept = new Uint8Array(p.length).fill(1);
  const ranked = top_p < 1 || (top_k > 0 && top_k < p.length) ? p.slice().sort().reverse() : null;
  if (top_p < 1) {
    let sum = 0, rank = 0;
    while (rank < ranked.length && sum < top_p) sum += ranked[rank++];
    const least = rank ? ranked[rank - 1] : Infinity;
    let ties = ranked.slice(0, rank).filter((value) => value === least).length;
    for (let i = 0; i < p.length; i++) {
      const inside = p[i] > least || (p[i] === least && ties-- > 0);
      kept[i] = inside || (top_p_x > 0 && p[i] > top_p_x) ? 1 : 0;
    }
  }
  const enough = top_k > 0 && top_k < p.length ? ranked[top_k - 1] : 0;
  const share = top_a > 0 ? top_a * p[best] ** top_a_power : 0;
  for (let i = 0; i < p.length; i++) if (p[i] < enough || p[i] < share) kept[i] = 0;
  kept[best] = 1;
  return softmax(logits.map((value, i) => kept[i] ? value : -Infinity), temperature);
}

function softmax(logits, temperature) {
  const most = logits.reduce((a, b) => Math.max(a, b));
  const p = logits.map((value) => Math.exp((value - most) / temperature));
  const sum = p.reduce((a, b) => a + b);
  return p.map((value) => value / sum);
}

/** An index drawn with probabilities p, by a number u in [0, 1). */
function drawn(p, u = Math.random()) {
  let last = 0;
  for (let i = 0; i < p.length; i++) {
    if (p[i] > 0) last = i;
    u -= p[i];
    if (u < 0) return i;
  }
  return last;
}

// ---- tokenizers ---------------------------------------------------------------------------------------------------

const REPLACEMENT = "\ufffd";

/** Characters that byte-level BPE writes bytes as: themselves if printable in Latin-1, others from U+0100 on. */
const SHOWN = (() => {
  const shown = [];
  for (let byte = 0, n = 256; byte < 256; byte++) {
    const printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
    shown.push(String.fromCharCode(printable ? byte : n++));
  }
  return shown;
})();
const BYTE_OF = new Map(SHOWN.map((character, byte) => [character, byte]));

// Words, numbers and signs with a space before them (Radford et al. 2019).
const WORDS = new RegExp("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\p{White_Space}\\p{L}\\p{N}]+"
  + "|\\p{White_Space}+(?!\\P{White_Space})|\\p{White_Space}+", "gu");

/** Text of tokens that arrive one by one; a character that several of them make up comes with the last. */
function byteStream(bytesOfToken) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return {
    push: (token) => decoder.decode(bytesOfToken(token), { stream: true }),
    end: () => decoder.decode(),
  };
}

const TOKENIZERS = {
  char({ characters }) {
    const known = [...characters], ids = new Map(known.map((character, i) => [character, i]));
    return {
      size: known.length + 1,
      encode: (text) => [...text].map((character) => ids.get(character) ?? known.length),
      stream: () => ({ push: (token) => known[token] ?? REPLACEMENT, end: () => "" }),
    };
  },

  byte() {
    return {
      size: 256,
      encode: (text) => [...new TextEncoder().encode(text)],
      stream: () => byteStream((token) => Uint8Array.of(token)),
    };
  },

  ids({ vocab_size }) {
    return {
      size: vocab_size,
      encode: (text) => text.trim().split(/\s+/).filter(Boolean).map((word) => {
        if (!/^\d+$/.test(word) || Number(word) >= vocab_size)
          throw new RangeError(`This model reads token ids from 0 to ${vocab_size - 1} with spaces between, not ${word}.`);
        return Number(word);
      }),
      stream: () => ({ push: (token) => ` ${token}`, end: () => "" }),
    };
  },

  bpe({ tokenizer }) {
    const { model, pre_tokenizer: splitter, normalizer, added_tokens: added = [] } = tokenizer;
    const vocabulary = new Map(Object.entries(model.vocab)), tokens = [];
    for (const [token, id] of vocabulary) tokens[id] = token;
    for (const { content, id } of added) tokens[id] = content;
    const pairs = model.merges.map((pair) => typeof pair === "string" ? pair : pair.join(" "));
    const ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
    const unknown = vocabulary.get(model.unk_token);
    const special = new Set(added.filter((token) => token.special).map((token) => token.id));
    const byteLevel = splitter !== null && splitter !== undefined;
    const normalised = (text) => normalizer ? text.normalize("NFC") : text;
    const [early, late] = [false, true].map((flag) => added.filter((token) => token.normalized === flag));
    const encoder = new TextEncoder();

    function merged(word) {
      if (model.ignore_merges && vocabulary.has(word)) return [word];
      let parts = [...word];
      while (parts.length > 1) {
        let best = Infinity;
        for (let i = 0; i + 1 < parts.length; i++)
          best = Math.min(best, ranks.get(`${parts[i]} ${parts[i + 1]}`) ?? Infinity);
        if (best === Infinity) break;
        const next = [];
        for (let i = 0; i < parts.length; i++)
          next.push(ranks.get(`${parts[i]} ${parts[i + 1]}`) === best ? parts[i] + parts[++i] : parts[i]);
        parts = next;
      }
      return parts;
    }

    function words(text) {
      if (!byteLevel) return [text];
      if (splitter.add_prefix_space && !text.startsWith(" ")) text = ` ${text}`;
      const pieces = splitter.use_regex === false ? [text] : text.match(WORDS) ?? [];
      return pieces.map((piece) => [...encoder.encode(piece)].map((byte) => SHOWN[byte]).join(""));
    }

    function plain(text) {
      const ids = [];
      for (const word of text ? words(text) : [])
        for (const part of merged(word)) {
          const id = vocabulary.get(part) ?? unknown;
          const fused = model.fuse_unk && id === unknown && ids.at(-1) === unknown;
          if (id !== undefined && !fused) ids.push(id);
        }
      return ids;
    }

    /** Ids of the added tokens in a text, and what rest gives for the text between them. */
    function around(list, text, rest) {
      const longest = [...list].sort((a, b) => b.content.length - a.content.length);
      const ids = [];
      let start = 0;
      for (let i = 0; i < text.length && longest.length;) {
        const found = longest.find((token) => token.content && text.startsWith(token.content, i));
        if (!found) {
          i++;
          continue;
        }
        ids.push(...rest(text.slice(start, i)), found.id);
        start = i += found.content.length;
      }
      return [...ids, ...rest(text.slice(start))];
    }

    function bytesOfToken(id) {
      const token = special.has(id) ? "" : tokens[id] ?? "", characters = [...token];
      if (characters.every((character) => BYTE_OF.has(character)))
        return Uint8Array.from(characters, (character) => BYTE_OF.get(character));
      return encoder.encode(token);
    }

    return {
      size: tokens.length,
      encode: (text) => around(early, text, (part) => around(late, normalised(part), plain)),
      stream: () => byteLevel ? byteStream(bytesOfToken)
        : { push: (id) => special.has(id) ? "" : tokens[id] ?? "", end: () => "" },
    };
  },
};
