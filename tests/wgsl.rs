//! Every shader, in every variant that is compiled, passes naga's validator with exactly the capabilities that it declares,
//! and becomes SPIR-V. Needs no adapter.
#![cfg(feature = "wgpu")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails and reports this way")]

use duquant::kernels::wgpu::variants;
use naga::valid::{Capabilities, ValidationFlags, Validator};

#[test]
fn every_shader_is_valid_for_what_it_declares() {
    for (shader, variant) in variants() {
        let source = shader.source(&variant);
        let place = format!("{} {variant:?}", shader.name);
        let module = naga::front::wgsl::parse_str(&source).unwrap_or_else(|fault| {
            panic!("{place}: {}", fault.emit_to_string(&source));
        });
        let mut capabilities = Capabilities::IMMEDIATES;
        if variant.prelude.contains("enable f16;") {
            capabilities |= Capabilities::SHADER_FLOAT16;
        }
        // Part of WebGPU's core; only what is no WebGPU lacks it.
        if source.contains("pack2x16float") {
            capabilities |= Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        }
        if source.contains("f64") {
            capabilities |= Capabilities::FLOAT64;
        }
        let info = Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|fault| panic!("{place}: {}", fault.emit_to_string(&source)));
        let constants = variant.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let entry = (naga::ShaderStage::Compute, shader.name);
        let (module, info) = naga::back::pipeline_constants::process_overrides(&module, &info, Some(entry), &constants)
            .unwrap_or_else(|fault| panic!("{place}: {fault}"));
        let options = naga::back::spv::Options { lang_version: (1, 3), ..naga::back::spv::Options::default() };
        let pipeline = naga::back::spv::PipelineOptions { shader_stage: entry.0, entry_point: entry.1.to_owned() };
        let words = naga::back::spv::write_vec(&module, &info, &options, Some(&pipeline))
            .unwrap_or_else(|fault| panic!("{place}: {fault}"));
        assert!(words.len() > 100, "{place}");
    }
}
