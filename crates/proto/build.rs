//! Generates the Connect RPC code of `proto/envd/*.proto`; does nothing without the feature `envd`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "envd")]
    envd::generate();
}

#[cfg(feature = "envd")]
mod envd {
    use std::path::PathBuf;

    use buffa_codegen::BytesRepr;
    use connectrpc_build::{CodeGenConfig, Config};

    const FILES: [&str; 2] = ["process.proto", "filesystem.proto"];

    /// A failure here is a broken .proto file or a missing protoc: the build ends with protoc's own words.
    pub fn generate() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../proto");
        let folder = root.join("envd");
        // Not among the files that code is made from, so the generator does not name it to cargo.
        println!("cargo:rerun-if-changed={}", root.join("google/protobuf/timestamp.proto").display());
        let files: Vec<PathBuf> = FILES.iter().map(|name| folder.join(name)).collect();
        let result = Config::new()
            .buffa_config(messages())
            .client_feature_name("envd-client")
            .files(&files)
            .includes(&[&folder, &root])
            .include_file("_envd.rs")
            .compile();
        if let Err(error) = result {
            panic!("cannot generate the code of proto/envd (Debian package protobuf-compiler has protoc): {error:#}");
        }
    }

    /// JSON beside binary, as E2B's clients speak nothing else; `bytes` as shared buffers, so that output is not
    /// copied on its way; unknown fields dropped, as nobody here passes a message on.
    fn messages() -> CodeGenConfig {
        let mut config = CodeGenConfig::default();
        config.generate_json = true;
        config.generate_views = true;
        config.preserve_unknown_fields = false;
        config.emit_register_fn = false;
        config.bytes_fields.push((".".to_owned(), BytesRepr::Bytes));
        config
    }
}
