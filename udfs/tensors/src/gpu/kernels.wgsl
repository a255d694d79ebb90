// Merging element by element, to the bit as the CPU does it. Only + - *, comparisons and integers, whose results IEEE 754 fixes; a product
// that is added to something goes through integers, so that no compiler makes one rounding of two.

// Word 0: elements, 1: models, 2: flags or the rule, 3: zero, 4-5: index of the first element, 6: factor of the sum or number of the rule,
// 7-9: what else a rule has; then eight or sixteen words for each model.
const HEAD = 12u;
@group(0) @binding(0) var<storage, read> settings: array<u32>;
// The inputs one behind the other, each as long as the tile; the base is the last.
@group(0) @binding(1) var<storage, read> inputs: array<f32>;
@group(0) @binding(2) var<storage, read_write> merged: array<f32>;
// Not zero once a number left the range in which devices and CPUs agree.
@group(0) @binding(3) var<storage, read_write> odd: atomic<u32>;

const TASKS = 1u;
const CONSENSUS = 2u;
const NORMALIZE = 4u;

const LEAST = 7.888609e-31; // 2^-100
const MOST = 1.2676506e30; // 2^100

fn magnitude(bits: u32) -> u32 {
  return bits & 0x7fffffffu;
}

// The product, rounded by itself.
fn times(a: f32, b: f32) -> f32 {
  let product = a * b;
  let size = abs(product);
  if (a != 0.0 && b != 0.0 && !(size > LEAST && size < MOST)) {
    atomicOr(&odd, 1u);
  }
  return bitcast<f32>(bitcast<u32>(product) ^ settings[3]);
}

// The quotient, rounded to nearest, ties to even: devices round division as they like. Neither is subnormal, and b is not zero.
fn quotient(a: f32, b: f32) -> f32 {
  let x = bitcast<u32>(a);
  let y = bitcast<u32>(b);
  let sign = (x ^ y) & 0x80000000u;
  if (magnitude(x) == 0u) {
    return bitcast<f32>(sign);
  }
  var exponent = i32((x >> 23u) & 255u) - i32((y >> 23u) & 255u);
  var rest = (x & 0x7fffffu) | 0x800000u;
  let divisor = (y & 0x7fffffu) | 0x800000u;
  if (rest < divisor) {
    rest = rest << 1u;
    exponent -= 1;
  }
  var bits = 0u;
  for (var i = 0; i < 24; i++) {
    bits = bits << 1u;
    if (rest >= divisor) {
      rest -= divisor;
      bits |= 1u;
    }
    rest = rest << 1u;
  }
  if (rest > divisor || (rest == divisor && (bits & 1u) == 1u)) {
    bits += 1u;
  }
  if (bits == 0x1000000u) {
    bits = bits >> 1u;
    exponent += 1;
  }
  if (exponent < -100 || exponent > 100) {
    atomicOr(&odd, 1u);
  }
  return bitcast<f32>(sign | (u32(exponent + 127) << 23u) | (bits & 0x7fffffu));
}

@compute @workgroup_size(256)
fn combine(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x;
  let n = settings[0];
  if (at >= n) {
    return;
  }
  let models = settings[1];
  let tasks = (settings[2] & TASKS) != 0u;
  var base = 0.0;
  if (tasks) {
    base = inputs[models * n + at];
  }
  var sum = 0.0;
  for (var i = 0u; i < models; i++) {
    let factor = bitcast<f32>(settings[HEAD + 8u * i]);
    var value = inputs[i * n + at];
    if (tasks) {
      value = value - base;
    }
    let product = times(factor, value);
    if (i == 0u && !tasks) {
      sum = product;
    } else {
      sum = sum + product;
    }
  }
  if (tasks) {
    sum = sum + base;
  }
  merged[at] = sum;
}

// The upper half of a product of 64 bits.
fn high(a: u32, b: u32) -> u32 {
  let al = a & 0xffffu;
  let ah = a >> 16u;
  let bl = b & 0xffffu;
  let bh = b >> 16u;
  let low = al * bl;
  let first = ah * bl + (low >> 16u);
  let second = al * bh + (first & 0xffffu);
  return ah * bh + (first >> 16u) + (second >> 16u);
}

// Philox4x32-10 (Salmon et al. 2011): the number of an element.
fn random(index: vec2<u32>, key: vec2<u32>, stream: vec2<u32>) -> u32 {
  var k = key;
  var c = vec4<u32>((index.x >> 2u) | (index.y << 30u), index.y >> 2u, stream.x, stream.y);
  for (var i = 0; i < 10; i++) {
    if (i > 0) {
      k = k + vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    c = vec4<u32>(
      high(c.z, 0xCD9E8D57u) ^ c.y ^ k.x,
      c.z * 0xCD9E8D57u,
      high(c.x, 0xD2511F53u) ^ c.w ^ k.y,
      c.x * 0xD2511F53u,
    );
  }
  let word = index.x & 3u;
  if (word == 0u) { return c.x; }
  if (word == 1u) { return c.y; }
  if (word == 2u) { return c.z; }
  return c.w;
}

fn before(key: u32, index: vec2<u32>, cut_key: u32, cut: vec2<u32>) -> bool {
  return key < cut_key || (key == cut_key && (index.y < cut.y || (index.y == cut.y && index.x < cut.x)));
}

// The index of an element of the tile in its tensor.
fn place_of(at: u32) -> vec2<u32> {
  var index = vec2<u32>(settings[4] + at, settings[5]);
  if (index.x < at) {
    index.y += 1u;
  }
  return index;
}

// Of a model: how it is thinned, its weight times its scale, and what that needs.
const ALL = 0u;
const GREATEST = 1u;
const BETWEEN = 2u;
const RANDOM = 3u;

// The entry of a task vector at an element: thinned out and weighted.
fn entry(i: u32, at: u32, base: f32) -> f32 {
  let n = settings[0];
  let delta = inputs[i * n + at] - base;
  let here = HEAD + 16u * i;
  let index = place_of(at);
  let size = magnitude(bitcast<u32>(delta));
  var factor = 1.0;
  switch (settings[here]) {
    case GREATEST: {
      // Cuts may count from an element of an earlier tensor.
      var place = vec2<u32>(index.x + settings[here + 6u], index.y + settings[here + 7u]);
      if (place.x < index.x) {
        place.y += 1u;
      }
      let kept = before(0x7fffffffu - size, place, settings[here + 3u], vec2<u32>(settings[here + 4u], settings[here + 5u]));
      factor = select(0.0, 1.0, kept);
    }
    case BETWEEN: {
      let dropped = before(size, index, settings[here + 3u], vec2<u32>(settings[here + 4u], settings[here + 5u]));
      let reached = before(size, index, settings[here + 6u], vec2<u32>(settings[here + 7u], settings[here + 8u]));
      factor = select(0.0, 1.0, reached && !dropped);
    }
    case RANDOM: {
      let key = vec2<u32>(settings[here + 3u], settings[here + 4u]);
      let stream = vec2<u32>(settings[here + 5u], settings[here + 6u]);
      let kept = settings[here + 8u] != 0u || random(index, key, stream) < settings[here + 7u];
      factor = select(0.0, bitcast<f32>(settings[here + 2u]), kept);
    }
    default: {}
  }
  return times(delta, times(factor, bitcast<f32>(settings[here + 1u])));
}

@compute @workgroup_size(256)
fn vectors(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x;
  let n = settings[0];
  if (at >= n) {
    return;
  }
  let models = settings[1];
  let base = inputs[models * n + at];
  let factor = bitcast<f32>(settings[6]);
  var sum = 0.0;
  for (var i = 0u; i < models; i++) {
    sum = sum + entry(i, at, base);
  }
  if ((settings[2] & CONSENSUS) == 0u) {
    merged[at] = base + times(factor, sum);
    return;
  }
  let sign = select(-1.0, 1.0, sum >= 0.0);
  var agreeing = 0.0;
  var divisor = 0.0;
  for (var i = 0u; i < models; i++) {
    let value = entry(i, at, base);
    let agrees = value * sign > 0.0;
    agreeing = agreeing + select(0.0, value, agrees);
    divisor = divisor + select(0.0, bitcast<f32>(settings[HEAD + 16u * i + 9u]), agrees);
  }
  if ((settings[2] & NORMALIZE) != 0u && abs(divisor) >= 1e-8) {
    agreeing = quotient(agreeing, divisor);
  }
  merged[at] = base + times(factor, agreeing);
}

const LARGEST = 0u;
const AGREEING = 1u;
const NEAR = 2u;
const NEEDED = 3u;
const ELECTED = 4u;
const SHARED = 5u;
const MIDDLE = 6u;
const MOVED = 7u;
const VARYING = 8u;

// A number of a model.
fn of_model(i: u32, which: u32) -> f32 {
  return bitcast<f32>(settings[HEAD + 8u * i + which]);
}

// What orders floats by value, -0 before 0.
fn by_value(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// The value at a rank among the models.
fn ranked(rank: u32, at: u32) -> f32 {
  let n = settings[0];
  let models = settings[1];
  var found = 0.0;
  for (var i = 0u; i < models; i++) {
    let own = by_value(inputs[i * n + at]);
    var before = 0u;
    for (var j = 0u; j < models; j++) {
      let other = by_value(inputs[j * n + at]);
      before += select(0u, 1u, other < own || (other == own && j < i));
    }
    if (before == rank) {
      found = inputs[i * n + at];
    }
  }
  return found;
}

// The mean of two: halving changes no bit of their sum, and with f64 in between there is no other sum as long as they are not too far apart.
fn halfway(a: f32, b: f32) -> f32 {
  let apart = i32((bitcast<u32>(a) >> 23u) & 255u) - i32((bitcast<u32>(b) >> 23u) & 255u);
  if (a != 0.0 && b != 0.0 && abs(apart) > 28) {
    atomicOr(&odd, 1u);
  }
  return times(0.5, a + b);
}

@compute @workgroup_size(256)
fn entries(@builtin(global_invocation_id) id: vec3<u32>) {
  let at = id.x;
  let n = settings[0];
  if (at >= n) {
    return;
  }
  let models = settings[1];
  let rule = settings[2];
  let number = bitcast<f32>(settings[6]);
  if (rule == MIDDLE) {
    let low = ranked((models - 1u) / 2u, at);
    merged[at] = low;
    if (models % 2u == 0u) {
      merged[at] = halfway(low, ranked(models / 2u, at));
    }
    return;
  }
  if (rule == MOVED) {
    var all = 0.0;
    for (var i = 0u; i < models; i++) {
      all = all + (times(of_model(i, 0u), inputs[i * n + at]) + of_model(i, 1u));
    }
    merged[at] = all;
    return;
  }
  let base = inputs[models * n + at];
  var sum = 0.0;
  var greatest = 0.0;
  var up = 0u;
  var down = 0u;
  var beyond = 0u;
  var alone = 1.0;
  var shared_sum = 0.0;
  for (var i = 0u; i < models; i++) {
    let delta = inputs[i * n + at] - base;
    sum = sum + delta;
    if (abs(delta) > abs(greatest) || (abs(delta) == abs(greatest) && delta > greatest)) {
      greatest = delta;
    }
    up += select(0u, 1u, delta > 0.0);
    down += select(0u, 1u, delta < 0.0);
    if (rule == SHARED && abs(delta) > number) {
      shared_sum = shared_sum + delta;
      beyond += 1u;
      alone = of_model(i, 0u);
    }
  }
  var change = 0.0;
  switch (rule) {
    case LARGEST: {
      change = times(number, greatest);
    }
    case AGREEING: {
      let agree = up == models || down == models;
      merged[at] = base - select(0.0, times(number, sum), agree);
      return;
    }
    case NEAR: {
      let distance = abs(sum);
      var share = 0.0;
      if (distance <= number) {
        share = 1.0;
      } else if (number > 0.0) {
        share = quotient(number, distance);
      }
      change = times(share, sum);
    }
    case NEEDED: {
      var count = 0u;
      for (var i = 0u; i < models; i++) {
        let delta = inputs[i * n + at] - base;
        count += select(0u, 1u, abs(delta) >= times(of_model(i, 0u), abs(sum - delta)));
      }
      if (count >= settings[7]) {
        change = times(number, sum);
      }
    }
    case ELECTED: {
      let sign = select(-1.0, 1.0, sum > 0.0);
      var most = 0.0;
      for (var i = 0u; i < models; i++) {
        let along = (inputs[i * n + at] - base) * sign;
        most = select(most, along, along > most);
      }
      let unified = sign * most;
      change = unified;
      if (settings[7] < models) {
        let own = inputs[settings[7] * n + at] - base;
        change = select(0.0, times(number, unified), times(own, unified) > 0.0);
      }
    }
    case SHARED: {
      if (beyond == 1u) {
        change = times(shared_sum, alone);
      } else if (beyond > 1u) {
        change = quotient(shared_sum, f32(beyond));
      }
    }
    case VARYING: {
      let mean = quotient(sum, f32(models));
      var squares = 0.0;
      for (var i = 0u; i < models; i++) {
        let off = (inputs[i * n + at] - base) - mean;
        squares = squares + times(off, off);
      }
      let variance = quotient(squares, f32(models));
      let cut = vec2<u32>(settings[8], settings[9]);
      if (!before(0x7fffffffu - magnitude(bitcast<u32>(variance)), place_of(at), settings[7], cut)) {
        merged[at] = base;
        return;
      }
      let sign = select(-1.0, 1.0, sum >= 0.0);
      var agreeing = 0.0;
      var divisor = 0.0;
      for (var i = 0u; i < models; i++) {
        let delta = inputs[i * n + at] - base;
        let agrees = delta * sign > 0.0;
        agreeing = agreeing + select(0.0, times(delta, of_model(i, 0u)), agrees);
        divisor = divisor + select(0.0, of_model(i, 0u), agrees);
      }
      // What nothing agrees on stays; otherwise the divisor is a weight at least.
      if (divisor > number) {
        change = quotient(agreeing, divisor);
      } else if (agreeing != 0.0) {
        change = quotient(agreeing, number);
      }
    }
    default: {}
  }
  merged[at] = base + change;
}
