//! Decode attention over the 4-bit cache against the same kernel over half precision, at a long context.

use super::Fault;
use super::machine::Machine;
use duquant::kernels::Affine;
use duquant::kernels::cuda::{
    AttentionDesc, AttentionOperands, AttentionPlan, Buffer, Dtype, KvCache, KvLayout, PAGE, QueryLayout, QueryOperand,
    Sequence,
};
use serde_json::{Value, json};

/// `(name, query heads, key heads, head dimension)`.
const SHAPES: [(&str, usize, usize, usize); 3] =
    [("llama2-7b", 32, 32, 128), ("llama2-13b", 40, 40, 128), ("llama3-8b", 32, 8, 128)];

pub(crate) fn measure(machine: &Machine) -> Result<Value, Fault> {
    let (contexts, batches): (&[usize], &[usize]) =
        if machine.is_gpu() { (&[1024, 4096, 16384], &[1, 8, 16, 64]) } else { (&[130], &[2]) };
    let shapes = if machine.is_gpu() { &SHAPES[..] } else { &[("tiny", 4, 2, 64)] };
    let mut points = Vec::new();
    for &(model, heads, kv_heads, head_dim) in shapes {
        for &context in contexts {
            for &batch in batches {
                // A third of the memory at most goes to one cache.
                let cache_bytes = 4 * batch * context * kv_heads * head_dim;
                if machine.is_gpu() && cache_bytes > 20 << 30 {
                    continue;
                }
                eprintln!("attention {model} {batch} x {context}");
                let mut point = json!({ "model": model, "batch": batch, "context": context, "heads": heads,
                    "kv_heads": kv_heads, "head_dim": head_dim });
                let mut medians = Vec::new();
                for bits in [Some(4), None] {
                    let (times, bytes, kernel) = decode(machine, heads, kv_heads, head_dim, context, batch, bits)?;
                    let name = if bits.is_some() { "int4_kv" } else { "fp16_kv" };
                    point[name] = times.report(bytes, 4.0 * (batch * context * heads * head_dim) as f64);
                    point[name]["kernel"] = json!(kernel);
                    medians.push(times.median());
                }
                point["speedup_over_fp16_kv"] = json!(medians[1] / medians[0]);
                points.push(point);
            }
        }
    }
    Ok(Value::Array(points))
}

fn decode(
    machine: &Machine,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    context: usize,
    batch: usize,
    bits: Option<u32>,
) -> Result<(super::machine::Times, f64, String), Fault> {
    let device = &machine.device;
    let affine = bits.map(|bits| Affine::new(bits, 1.0)).transpose()?;
    let pages = context.div_ceil(PAGE);
    let layout = KvLayout { kv_heads, head_dim, pages: pages * batch, key: affine, value: affine, float: Dtype::F16 };
    let desc = AttentionDesc {
        heads,
        tokens_max: batch,
        sequences_max: batch,
        context_max: context,
        window: None,
        out: Dtype::F16,
        cache: layout,
    };
    let plan = AttentionPlan::plan(device.as_ref(), &desc)?;
    let bytes = layout.key_bytes() + layout.value_bytes() + layout.param_bytes();
    let copies = machine.copies(bytes);
    let mut caches = Vec::with_capacity(copies);
    for _ in 0..copies {
        let cache = KvCache::new(device, layout)?;
        // Codes may be anything, halves stay small; scales of 2^-6, zero points 8, sums of 7.5 a channel.
        let params: Vec<u32> = (0..layout.param_bytes() / 8)
            .flat_map(|_| [(1.0_f32 / 64.0).to_bits(), 8 | (15 * head_dim as u32 / 2) << 16])
            .collect();
        for (to, bytes) in [(cache.keys(), layout.key_bytes()), (cache.values(), layout.value_bytes())] {
            let from =
                machine.random("numbers", bytes, if bits.is_some() { u64::MAX } else { 0xbfff_bfff_bfff_bfff })?;
            device.copy(machine.stream(), from.address(), to.address(), bytes)?;
            device.synchronize(machine.stream())?;
        }
        device.write(cache.params().address(), bytemuck::cast_slice(&params))?;
        caches.push(cache);
    }
    // Pages of all sequences, taken in turns as a server's allocator would.
    let table: Vec<u32> = (0..batch).flat_map(|s| (0..pages).map(move |p| (p * batch + s) as u32)).collect();
    let sequences: Vec<Sequence> = (0..batch)
        .map(|s| Sequence { first: s as u32, tokens: 1, position: context as u32 - 1, table: (s * pages) as u32 })
        .collect();
    let (table, sequences) =
        (Buffer::upload(device, "page table", &table)?, Buffer::upload(device, "sequences", &sequences)?);
    let queries = QueryLayout::new(heads, batch, &layout);
    let mask = if bits.is_some() { 0x0f0f_0f0f_0f0f_0f0f } else { 0xbfff_bfff_bfff_bfff };
    let codes = machine.random("queries", queries.code_bytes(), mask)?;
    let params: Vec<u32> =
        (0..batch * heads).flat_map(|_| [(1.0_f32 / 64.0).to_bits(), 8, 15 * head_dim as u32 / 2, 0]).collect();
    let params = Buffer::upload(device, "query parameters", &params)?;
    let out = machine.random("out", plan.out_bytes(), 0)?;
    let workspace = Buffer::zeroed(device, "workspace", plan.workspace_bytes().max(16))?;
    let times = machine.time(caches.len().max(2), |i| {
        let operands = AttentionOperands {
            queries: QueryOperand { codes: codes.address(), params: params.address() },
            cache: caches[i % caches.len()].operand(),
            sequences: sequences.address(),
            page_table: table.address(),
            out: out.address(),
            workspace: workspace.address(),
        };
        // SAFETY: the operands were made for the plan.
        unsafe { plan.enqueue(device.as_ref(), machine.stream(), batch, batch, 1, &operands) }
    })?;
    Ok((times, bytes as f64, plan.kernel(1)?))
}
