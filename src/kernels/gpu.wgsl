// The kernels of a GPU. What stands before this text when it is compiled: `F`, the type of values between kernels (f32 or f16);
// `R`, that of the residual; `PER_WORD`, the weights of a word (1 in f32, 2 in f16, 4 in int8); `ACTIVATION`; `HAS_FACTORS`; `HAS_PLACES`;
// `WIDTH`, the values of an attention head, and `KEYS`, those of its keys that are held at a time.

// ---------------------------------------------------------------------------------------------------------------------- weights

// The weight at `at` of a word.
fn widened(word: u32, at: u32) -> f32 {
    if (PER_WORD == 4u) {
        return f32(bitcast<i32>(word << (24u - 8u * at)) >> 24u);
    }
    if (PER_WORD == 2u) {
        let both = unpack2x16float(word);
        return select(both.x, both.y, at == 1u);
    }
    return bitcast<f32>(word);
}

// ------------------------------------------------------------------------------------------------------------- rows of a table

struct Rows { first: u32, rows: u32, width: u32, numbers: u32 }
@group(0) @binding(0) var<uniform> rows_of: Rows;
@group(0) @binding(1) var<storage, read> rows_words: array<u32>;
@group(0) @binding(2) var<storage, read> rows_scales: array<f32>;
@group(0) @binding(3) var<storage, read> rows_numbers: array<u32>;
@group(0) @binding(4) var<storage, read_write> rows_out: array<F>;

// The rows of these numbers that are in this part of the table, from number `first` on.
@compute @workgroup_size(64)
fn rows(
    @builtin(local_invocation_index) unit: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if (row >= rows_of.numbers) {
        return;
    }
    // Those before the first wrap, and are beyond the last.
    let number = rows_numbers[row] - rows_of.first;
    if (number >= rows_of.rows) {
        return;
    }
    let words = (rows_of.width + PER_WORD - 1u) / PER_WORD;
    for (var word = unit; word < words; word += 64u) {
        let bits = rows_words[number * words + word];
        for (var at = 0u; at < PER_WORD; at++) {
            let column = word * PER_WORD + at;
            if (column < rows_of.width) {
                var value = widened(bits, at);
                if (PER_WORD == 4u) {
                    value *= rows_scales[number];
                }
                rows_out[row * rows_of.width + column] = F(value);
            }
        }
    }
}

struct Take { width: u32, numbers: u32 }
@group(0) @binding(0) var<uniform> take_of: Take;
@group(0) @binding(1) var<storage, read> take_x: array<F>;
@group(0) @binding(2) var<storage, read> take_numbers: array<u32>;
@group(0) @binding(3) var<storage, read_write> take_out: array<F>;

// The rows of these numbers, of values between kernels.
@compute @workgroup_size(64)
fn take(
    @builtin(local_invocation_index) unit: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    let row = group.y * groups.x + group.x;
    if (row >= take_of.numbers) {
        return;
    }
    let begin = take_numbers[row] * take_of.width;
    for (var column = unit; column < take_of.width; column += 64u) {
        take_out[row * take_of.width + column] = take_x[begin + column];
    }
}

// ------------------------------------------------------------------------------------------------------------------- layer norm

struct Norm { rows: u32, width: u32, epsilon: f32 }
@group(0) @binding(0) var<uniform> norm_of: Norm;
@group(0) @binding(1) var<storage, read> norm_x: array<F>;
@group(0) @binding(2) var<storage, read> norm_residual: array<R>;
@group(0) @binding(3) var<storage, read> norm_places: array<u32>;
@group(0) @binding(4) var<storage, read> norm_gamma: array<f32>;
@group(0) @binding(5) var<storage, read> norm_beta: array<f32>;
@group(0) @binding(6) var<storage, read_write> norm_out: array<F>;
var<workgroup> partial: array<f32, 64>;

// The sum over the workgroup.
fn total(unit: u32, value: f32) -> f32 {
    partial[unit] = value;
    workgroupBarrier();
    for (var half = 32u; half > 0u; half /= 2u) {
        if (unit < half) {
            partial[unit] += partial[unit + half];
        }
        workgroupBarrier();
    }
    let sum = partial[0];
    workgroupBarrier();
    return sum;
}

fn added(x: u32, residual: u32) -> f32 {
    return f32(norm_x[x]) + f32(norm_residual[residual]);
}

// `norm(x + residual) * gamma + beta`, a workgroup for each row; the residual's rows are those of `places` where it has them.
@compute @workgroup_size(64)
fn add_norm(
    @builtin(local_invocation_index) unit: u32,
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
) {
    // Of workgroups too many, the last row.
    let row = min(group.y * groups.x + group.x, norm_of.rows - 1u);
    let width = norm_of.width;
    let x = row * width;
    var residual = x;
    if (HAS_PLACES) {
        residual = norm_places[row] * width;
    }
    var sum = 0.0;
    for (var i = unit; i < width; i += 64u) {
        sum += added(x + i, residual + i);
    }
    let mean = total(unit, sum) / f32(width);
    var squares = 0.0;
    for (var i = unit; i < width; i += 64u) {
        let distance = added(x + i, residual + i) - mean;
        squares += distance * distance;
    }
    let scale = 1.0 / sqrt(total(unit, squares) / f32(width) + norm_of.epsilon);
    for (var i = unit; i < width; i += 64u) {
        norm_out[x + i] = F((added(x + i, residual + i) - mean) * scale * norm_gamma[i] + norm_beta[i]);
    }
}

// ----------------------------------------------------------------------------------------------------------------- linear layers

// Some drivers' own overflows.
fn bounded_tanh(x: f32) -> f32 {
    let y = exp(-2.0 * abs(x));
    return sign(x) * (1.0 - y) / (1.0 + y);
}

// To 1.5e-7 (Abramowitz and Stegun 1964, 7.1.26).
fn erf(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.3275911 * abs(x));
    let sum = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
    return sign(x) * (1.0 - sum * exp(-x * x));
}

fn activated(x: f32) -> f32 {
    if (ACTIVATION == 1u) {
        return 0.5 * x * (1.0 + erf(x * 0.70710678));
    }
    if (ACTIVATION == 2u) {
        return 0.5 * x * (1.0 + bounded_tanh(0.7978845608 * (x + 0.044715 * x * x * x)));
    }
    if (ACTIVATION == 3u) {
        return max(x, 0.0);
    }
    if (ACTIVATION == 4u) {
        return bounded_tanh(x);
    }
    return x;
}

struct Linear { rows: u32, inputs: u32, outputs: u32, width: u32 }
@group(0) @binding(0) var<uniform> linear_of: Linear;
@group(0) @binding(1) var<storage, read> linear_x: array<F>;
@group(0) @binding(2) var<storage, read> linear_words: array<u32>;
@group(0) @binding(3) var<storage, read> linear_scales: array<f32>;
@group(0) @binding(4) var<storage, read> linear_factors: array<f32>;
@group(0) @binding(5) var<storage, read> linear_bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> linear_out: array<F>;
// A workgroup has 64 x 64 of the product, each of its units four rows and four columns, and takes 16 inputs at a time. Of the sizes tried on
// an H100 (in CubeCL) this one lost to none by much, from 16 rows to 16,384. Fours that are written at once stand 17 apart, in different banks.
var<workgroup> left: array<vec4<f32>, 272>;
var<workgroup> right: array<vec4<f32>, 256>;

// Input `k` of four rows beside each other, zeros beyond them.
fn four_rows(first: u32, k: u32) -> vec4<f32> {
    var four = vec4<f32>();
    if (k < linear_of.inputs) {
        for (var i = 0u; i < 4u; i++) {
            if (first + i < linear_of.rows) {
                four[i] = f32(linear_x[(first + i) * linear_of.inputs + k]);
            }
        }
        if (HAS_FACTORS) {
            four *= linear_factors[k];
        }
    }
    return four;
}

// The words of four columns, zeros beyond them.
fn four_words(first: u32, word: u32, brings: bool) -> vec4<u32> {
    var four = vec4<u32>();
    if (brings && word * PER_WORD < linear_of.inputs) {
        for (var i = 0u; i < 4u; i++) {
            if (first + i < linear_of.outputs) {
                four[i] = linear_words[word * linear_of.outputs + first + i];
            }
        }
    }
    return four;
}

fn put(row: u32, first: u32, sums: vec4<f32>) {
    if (row >= linear_of.rows) {
        return;
    }
    for (var i = 0u; i < 4u; i++) {
        let column = first + i;
        if (column < linear_of.outputs) {
            var y = sums[i];
            if (PER_WORD == 4u) {
                y *= linear_scales[column];
            }
            y = activated(y + linear_bias[column]);
            let part = column / linear_of.width;
            let at = (part * linear_of.rows + row) * linear_of.width + column % linear_of.width;
            linear_out[at] = F(y);
        }
    }
}

// `activation(x W^T + bias)`, `width` outputs after `width` outputs, each `[rows, width]`.
@compute @workgroup_size(256)
fn linear(@builtin(local_invocation_index) unit: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let own = unit / 16u;
    let other = unit % 16u;
    let row = group.y * 64u + own * 4u;
    let column = group.x * 64u + other * 4u;
    // Words hold several inputs, so that the first units bring all.
    let brings = own < 16u / PER_WORD;
    var sums0 = vec4<f32>();
    var sums1 = vec4<f32>();
    var sums2 = vec4<f32>();
    var sums3 = vec4<f32>();
    var next_rows = four_rows(row, other);
    var next_words = four_words(column, own, brings);
    for (var depth = 0u; depth < linear_of.inputs; depth += 16u) {
        left[other * 17u + own] = next_rows;
        if (brings) {
            for (var at = 0u; at < PER_WORD; at++) {
                let words = next_words;
                let four = vec4<f32>(
                    widened(words.x, at), widened(words.y, at), widened(words.z, at), widened(words.w, at));
                right[(own * PER_WORD + at) * 16u + other] = four;
            }
        }
        workgroupBarrier();
        // They arrive while these are multiplied.
        next_rows = four_rows(row, depth + 16u + other);
        next_words = four_words(column, (depth + 16u) / PER_WORD + own, brings);
        for (var k = 0u; k < 16u; k++) {
            let four = left[k * 17u + own];
            let columns = right[k * 16u + other];
            sums0 = fma(vec4<f32>(four.x), columns, sums0);
            sums1 = fma(vec4<f32>(four.y), columns, sums1);
            sums2 = fma(vec4<f32>(four.z), columns, sums2);
            sums3 = fma(vec4<f32>(four.w), columns, sums3);
        }
        workgroupBarrier();
    }
    put(row, column, sums0);
    put(row + 1u, column, sums1);
    put(row + 2u, column, sums2);
    put(row + 3u, column, sums3);
}

// --------------------------------------------------------------------------------------------------------------------- attention

struct Attention { part: u32, hidden: u32, scale: f32 }
@group(0) @binding(0) var<uniform> attention_of: Attention;
@group(0) @binding(1) var<storage, read> attention_qkv: array<F>;
@group(0) @binding(2) var<storage, read> attention_starts: array<u32>;
@group(0) @binding(3) var<storage, read_write> attention_out: array<F>;
const FOURS: u32 = (WIDTH + 3u) / 4u;
var<workgroup> key_tile: array<vec4<f32>, KEYS * FOURS>;
var<workgroup> value_tile: array<vec4<f32>, KEYS * FOURS>;

// Four values of a head, zeros beyond it.
fn four_of(begin: u32, four: u32) -> vec4<f32> {
    var values = vec4<f32>();
    for (var i = 0u; i < 4u; i++) {
        if (four * 4u + i < WIDTH) {
            values[i] = f32(attention_qkv[begin + four * 4u + i]);
        }
    }
    return values;
}

// A unit for each query, and the softmax as it goes (Milakov and Gimelshein 2018).
@compute @workgroup_size(64)
fn attention(@builtin(local_invocation_index) unit: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let start = attention_starts[group.z];
    let length = attention_starts[group.z + 1u] - start;
    let hidden = attention_of.hidden;
    let base = start * hidden + group.y * WIDTH;
    let query = group.x * 64u + unit;
    var q: array<vec4<f32>, FOURS>;
    var sums: array<vec4<f32>, FOURS>;
    for (var i = 0u; i < FOURS; i++) {
        q[i] = vec4<f32>();
        sums[i] = vec4<f32>();
        if (query < length) {
            q[i] = four_of(base + query * hidden, i) * attention_of.scale;
        }
    }
    var most = -1e30;
    var sum = 0.0;
    for (var first = 0u; first < length; first += KEYS) {
        for (var item = unit; item < KEYS * FOURS; item += 64u) {
            // Of keys too many, the last; their weights are zero.
            let begin = base + min(first + item / FOURS, length - 1u) * hidden;
            key_tile[item] = four_of(attention_of.part + begin, item % FOURS);
            value_tile[item] = four_of(2u * attention_of.part + begin, item % FOURS);
        }
        workgroupBarrier();
        var scores: array<f32, KEYS>;
        var highest = most;
        for (var key = 0u; key < KEYS; key++) {
            var products = vec4<f32>();
            for (var i = 0u; i < FOURS; i++) {
                products = fma(q[i], key_tile[key * FOURS + i], products);
            }
            let score = select(-1e30, products.x + products.y + products.z + products.w, first + key < length);
            scores[key] = score;
            highest = max(highest, score);
        }
        let shrunk = exp(most - highest);
        most = highest;
        sum *= shrunk;
        for (var i = 0u; i < FOURS; i++) {
            sums[i] *= shrunk;
        }
        for (var key = 0u; key < KEYS; key++) {
            let weight = exp(scores[key] - highest);
            sum += weight;
            for (var i = 0u; i < FOURS; i++) {
                sums[i] = fma(vec4<f32>(weight), value_tile[key * FOURS + i], sums[i]);
            }
        }
        workgroupBarrier();
    }
    if (query < length) {
        for (var i = 0u; i < FOURS; i++) {
            let values = sums[i] / sum;
            for (var j = 0u; j < 4u; j++) {
                if (i * 4u + j < WIDTH) {
                    attention_out[base + query * hidden + i * 4u + j] = F(values[j]);
                }
            }
        }
    }
}
