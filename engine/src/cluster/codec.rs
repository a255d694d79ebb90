//! What of ours crosses the network by its parts: text files. Functions cross by name.

use crate::columns::external;
use crate::objects::Object;
use crate::text_files::{Bytes, Layout};
use crate::text_scan::TextScan;
use arrow::datatypes::Schema;
use datafusion::common::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use datafusion_proto::protobuf;
use mergeql_udfs::{Code, Error};
use prost::Message;
use std::sync::Arc;

/// A scan of text files.
#[derive(Clone, PartialEq, Message)]
struct Scan {
    /// The schema of the files.
    #[prost(message, optional, tag = "1")]
    schema: Option<protobuf::Schema>,
    #[prost(message, repeated, tag = "2")]
    files: Vec<File>,
    #[prost(uint32, repeated, tag = "3")]
    projection: Vec<u32>,
    #[prost(bool, tag = "4")]
    projected: bool,
    #[prost(enumeration = "Kind", tag = "5")]
    layout: i32,
    #[prost(uint32, tag = "6")]
    delimiter: u32,
    #[prost(bool, tag = "7")]
    header: bool,
}

#[derive(Clone, PartialEq, Message)]
struct File {
    #[prost(string, optional, tag = "1")]
    path: Option<String>,
    #[prost(bytes = "vec", tag = "2")]
    bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Csv = 0,
    Ndjson = 1,
    Json = 2,
}

/// The codec of both sides.
#[derive(Debug)]
pub(crate) struct Codec;

fn broken(what: &str) -> DataFusionError {
    external(Error::new(Code::CorruptState, format!("a plan from the network is broken: {what}")))
}

impl PhysicalExtensionCodec for Codec {
    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        buffer: &mut Vec<u8>,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let Some(scan) = node.downcast_ref::<TextScan>() else {
            return Err(DataFusionError::NotImplemented(format!("{} does not run on workers", node.name())));
        };
        let (kind, delimiter, header) = match scan.layout {
            Layout::Csv { delimiter, header } => (Kind::Csv, u32::from(delimiter), header),
            Layout::Ndjson => (Kind::Ndjson, 0, false),
            Layout::Json => (Kind::Json, 0, false),
        };
        let file = |file: &Bytes| match file {
            Bytes::Path(_) | Bytes::Object(_) => File { path: Some(file.name()), bytes: Vec::new() },
            Bytes::Memory(bytes) => File { path: None, bytes: bytes.to_vec() },
        };
        let message = Scan {
            schema: Some(protobuf::Schema::try_from(scan.schema.as_ref()).map_err(|e| broken(&e.to_string()))?),
            files: scan.files.iter().map(file).collect(),
            projected: scan.projection.is_some(),
            projection: scan.projection.iter().flatten().map(|i| *i as u32).collect(),
            layout: kind.into(),
            delimiter,
            header,
        };
        buffer.extend(message.encode_to_vec());
        Ok(())
    }

    fn try_decode(
        &self,
        bytes: &[u8],
        _: &[Arc<dyn ExecutionPlan>],
        _: &TaskContext,
        _: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let scan = Scan::decode(bytes).map_err(|e| broken(&e.to_string()))?;
        let schema = scan.schema.as_ref().ok_or_else(|| broken("no schema"))?;
        let schema = Arc::new(Schema::try_from(schema).map_err(|e| broken(&e.to_string()))?);
        let layout = match scan.layout() {
            Kind::Csv => {
                let delimiter = u8::try_from(scan.delimiter).map_err(|_| broken("a delimiter"))?;
                Layout::Csv { delimiter, header: scan.header }
            }
            Kind::Ndjson => Layout::Ndjson,
            Kind::Json => Layout::Json,
        };
        let file = |file: File| match file.path {
            Some(path) => match Object::parse(&path).map_err(|e| DataFusionError::External(Box::new(e)))? {
                Some(object) => Ok(Bytes::Object(object)),
                None => Ok(Bytes::Path(path.into())),
            },
            None => Ok(Bytes::Memory(file.bytes.into())),
        };
        let projection: Option<Vec<usize>> = scan.projected.then(|| scan.projection.iter().map(|i| *i as usize).collect());
        let files = scan.files.into_iter().map(file).collect::<Result<_>>()?;
        Ok(Arc::new(TextScan::new(files, layout, schema, projection)?))
    }
}
