use super::super::checks::unsupported;
use super::super::{Address, Dtype, Error, MatrixProduct, Stream};
use super::IntegerProduct;
use super::context::Context;
use super::cublaslt::{Lt, Object, check};
use super::memory::Pool;
use cudarc::cublaslt::sys::{
    self, cublasLtMatmulAlgo_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulPreferenceAttributes_t as Preference, cudaDataType,
};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of memory for the library's own use, as NVIDIA advises for Hopper.
const WORKSPACE: u64 = 32 << 20;

/// `CUBLAS_OP_T`, which is not among the bindings of cuBLASLt alone.
const TRANSPOSED: c_int = 1;

/// cuBLASLt for one context.
pub(super) struct Blas {
    products: Mutex<Products>,
    handle: Object<c_void>,
    lt: Arc<Lt>,
    pool: Arc<Pool>,
    context: Arc<Context>,
}

// SAFETY: the library's handle may be used from any thread; the descriptors are behind a lock.
unsafe impl Sync for Blas {}

/// What is kept from call to call.
#[derive(Default)]
struct Products {
    chosen: HashMap<Key, Chosen>,
    /// One a stream, since products on two streams may run at once.
    workspaces: HashMap<usize, Workspace>,
}

/// What the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    shape: [usize; 3],
    input: Element,
    output: Element,
    biased: bool,
    accumulate: bool,
    /// Powers of two that divide the addresses of the weight, `x` and `y`.
    alignments: [u32; 3],
}

/// What operands are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Element {
    F32,
    F16,
    Bf16,
    I8,
    I32,
}

impl From<Dtype> for Element {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

impl Element {
    fn cuda(self) -> cudaDataType {
        match self {
            Self::F32 => cudaDataType::CUDA_R_32F,
            Self::F16 => cudaDataType::CUDA_R_16F,
            Self::Bf16 => cudaDataType::CUDA_R_16BF,
            Self::I8 => cudaDataType::CUDA_R_8I,
            Self::I32 => cudaDataType::CUDA_R_32I,
        }
    }
}

/// Where the operands of a product are.
struct Addresses {
    x: Address,
    weight: Address,
    y: Address,
    bias: Option<Address>,
}

struct Chosen {
    desc: Object<sys::cublasLtMatmulDescOpaque_t>,
    weight: Object<sys::cublasLtMatrixLayoutOpaque_t>,
    x: Object<sys::cublasLtMatrixLayoutOpaque_t>,
    y: Object<sys::cublasLtMatrixLayoutOpaque_t>,
    algorithm: cublasLtMatmulAlgo_t,
}

/// Memory of the library's for products on one stream.
pub(super) struct Workspace {
    pool: Arc<Pool>,
    address: Address,
    /// Whether a product was given it.
    used: bool,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        self.pool.free(self.address, WORKSPACE);
    }
}

impl Blas {
    pub(super) fn open(context: &Arc<Context>, pool: &Arc<Pool>) -> Result<Self, Error> {
        let lt = Lt::open()?;
        let _current = context.enter()?;
        // SAFETY: a handle to write to; the functions belong together.
        let handle = unsafe {
            let create = |raw: *mut *mut c_void| lt.cublasLtCreate(raw.cast());
            Object::new(&lt, "cublasLtCreate", create, |lt, raw| lt.cublasLtDestroy(raw.cast()))
        }?;
        let (context, pool) = (Arc::clone(context), Arc::clone(pool));
        Ok(Self { products: Mutex::default(), handle, lt, pool, context })
    }

    /// Makes room for products on a stream that is about to record, if there were any products before: then there will hardly be
    /// one that is the first of its shape.
    pub(super) fn reserve(&self, stream: Stream) -> Result<(), Error> {
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        if products.chosen.is_empty() { Ok(()) } else { self.workspace(&mut products.workspaces, stream).map(|_| ()) }
    }

    /// Forgets a stream, and gives the memory that its products were given.
    pub(super) fn release(&self, stream: Stream) -> Option<Workspace> {
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = products.workspaces.remove(&(stream.raw() as usize));
        // Freeing waits for the device.
        drop(products);
        workspace.filter(|workspace| workspace.used)
    }

    fn workspace<'a>(
        &self,
        workspaces: &'a mut HashMap<usize, Workspace>,
        stream: Stream,
    ) -> Result<&'a mut Workspace, Error> {
        match workspaces.entry(stream.raw() as usize) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let address = self.pool.allocate("cuBLASLt's workspace", WORKSPACE)?;
                Ok(entry.insert(Workspace { pool: Arc::clone(&self.pool), address, used: false }))
            }
        }
    }

    /// Enqueues a product. The first on a stream allocates its workspace and the first of a shape chooses an algorithm; after
    /// that nothing is allocated on the device.
    ///
    /// # Safety
    /// The operands must be as large as the shape says until the product has run.
    pub(super) unsafe fn product(&self, stream: Stream, product: &MatrixProduct) -> Result<(), Error> {
        let MatrixProduct { tokens, n, k, input, output, x, weight, bias, y, accumulate } = *product;
        if output != input && output != Dtype::F32 {
            return unsupported("output", format!("{input:?} or F32"), format!("{output:?}"));
        }
        let (shape, input, output) = ([tokens, n, k], input.into(), output.into());
        let addresses = Addresses { x, weight, y, bias };
        // SAFETY: the caller's.
        unsafe { self.run(stream, shape, [input, output], accumulate, &addresses) }
    }

    /// Enqueues a product of signed 8-bit integers in 32-bit ones.
    ///
    /// # Safety
    /// As [`Blas::product`].
    pub(super) unsafe fn integer_product(&self, stream: Stream, product: &IntegerProduct) -> Result<(), Error> {
        let IntegerProduct { tokens, n, k, x, weight, y } = *product;
        let addresses = Addresses { x, weight, y, bias: None };
        // SAFETY: the caller's.
        unsafe { self.run(stream, [tokens, n, k], [Element::I8, Element::I32], false, &addresses) }
    }

    /// # Safety
    /// As [`Blas::product`].
    unsafe fn run(
        &self,
        stream: Stream,
        shape: [usize; 3],
        [input, output]: [Element; 2],
        accumulate: bool,
        &Addresses { x, weight, y, bias }: &Addresses,
    ) -> Result<(), Error> {
        let [.., k] = shape;
        if k == 0 {
            return unsupported("k", "at least 1", k);
        }
        let _current = self.context.enter()?;
        let alignments = [weight, x, y].map(|at| 1_u32 << at.trailing_zeros().min(8));
        let key = Key { shape, input, output, biased: bias.is_some(), accumulate, alignments };
        let mut products = self.products.lock().unwrap_or_else(PoisonError::into_inner);
        let Products { chosen, workspaces } = &mut *products;
        let workspace = self.workspace(workspaces, stream)?;
        workspace.used = true;
        let workspace = workspace.address;
        let chosen = match chosen.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.choose(&key)?),
        };
        if let Some(bias) = bias {
            self.set(&chosen.desc, Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        // Factors are of the type that sums have; the bits of an integer 1 are those of a number that is none.
        let one = if input == Element::I8 { 1 } else { 1.0_f32.to_bits() };
        let beta = if accumulate { one } else { 0 };
        // SAFETY: the descriptors are those of the shape and are changed by nobody meanwhile; the caller vouches for the operands.
        let status = unsafe {
            self.lt.cublasLtMatmul(
                self.handle.raw().cast(),
                chosen.desc.raw(),
                (&raw const one).cast(),
                weight as *const c_void,
                chosen.weight.raw(),
                x as *const c_void,
                chosen.x.raw(),
                (&raw const beta).cast(),
                y as *const c_void,
                chosen.y.raw(),
                y as *mut c_void,
                chosen.y.raw(),
                &raw const chosen.algorithm,
                workspace as *mut c_void,
                WORKSPACE as usize,
                stream.raw().cast(),
            )
        };
        check("cublasLtMatmul", status)
    }

    /// The library counts columns first: it sees `y^T[N, T] = W x^T` where `W` comes transposed and all are as they lie.
    fn choose(&self, key: &Key) -> Result<Chosen, Error> {
        let lt = &self.lt;
        let [tokens, n, k] = key.shape.map(|extent| extent as u64);
        let (compute, scale) = match key.input {
            Element::I8 => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32I, cudaDataType::CUDA_R_32I),
            _ => (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F),
        };
        // SAFETY: a handle to write to; the functions belong together.
        let desc = unsafe {
            let create = |raw| lt.cublasLtMatmulDescCreate(raw, compute, scale);
            Object::new(lt, "cublasLtMatmulDescCreate", create, Lt::cublasLtMatmulDescDestroy)
        }?;
        self.set(&desc, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if key.biased {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            self.set(&desc, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let weight = self.layout(key.input, k, n)?;
        let x = self.layout(key.input, k, tokens)?;
        let y = self.layout(key.output, n, tokens)?;
        let algorithm =
            self.algorithm(key, [desc.raw().cast(), weight.raw().cast(), x.raw().cast(), y.raw().cast()])?;
        Ok(Chosen { desc, weight, x, y, algorithm })
    }

    fn algorithm(&self, key: &Key, [desc, weight, x, y]: [*mut c_void; 4]) -> Result<cublasLtMatmulAlgo_t, Error> {
        let lt = &self.lt;
        // SAFETY: a handle to write to; the functions belong together.
        let preference = unsafe {
            let create = |raw| lt.cublasLtMatmulPreferenceCreate(raw);
            Object::new(lt, "cublasLtMatmulPreferenceCreate", create, Lt::cublasLtMatmulPreferenceDestroy)
        }?;
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the attribute is of that many bytes.
            let status = unsafe { lt.cublasLtMatmulPreferenceSetAttribute(preference.raw(), attribute, value, bytes) };
            check("cublasLtMatmulPreferenceSetAttribute", status)
        };
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::ptr::from_ref(&WORKSPACE).cast(), 8)?;
        let [a, b, d] = &key.alignments;
        for (attribute, alignment) in [
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, d),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ] {
            set(attribute, std::ptr::from_ref(alignment).cast(), 4)?;
        }
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let mut got = 0;
        // SAFETY: the descriptors are alive; room for the one result that is asked for.
        let status = unsafe {
            lt.cublasLtMatmulAlgoGetHeuristic(
                self.handle.raw().cast(),
                desc.cast(),
                weight.cast(),
                x.cast(),
                y.cast(),
                y.cast(),
                preference.raw(),
                1,
                result.as_mut_ptr(),
                &raw mut got,
            )
        };
        let Key { shape: [tokens, n, k], input, output, .. } = key;
        let what = format!("choosing cuBLASLt's algorithm for [{tokens}, {k}] x [{n}, {k}]^T, {input:?} to {output:?}");
        check(&what, status)?;
        // SAFETY: it started as zeros, so that it is initialised. The state is read as a number, which may be one that the
        // bindings do not know.
        let (state, algorithm) = unsafe {
            let result = result.as_ptr();
            ((&raw const (*result).state).cast::<c_int>().read(), (&raw const (*result).algo).read())
        };
        const NOT_SUPPORTED: c_int = 15;
        check(&what, if got < 1 { NOT_SUPPORTED } else { state })?;
        Ok(algorithm)
    }

    fn layout(
        &self,
        element: Element,
        rows: u64,
        columns: u64,
    ) -> Result<Object<sys::cublasLtMatrixLayoutOpaque_t>, Error> {
        let lt = &self.lt;
        let dtype = element.cuda();
        // SAFETY: a handle to write to; the functions belong together.
        unsafe {
            let create = |raw| lt.cublasLtMatrixLayoutCreate(raw, dtype, rows, columns, rows as i64);
            Object::new(lt, "cublasLtMatrixLayoutCreate", create, Lt::cublasLtMatrixLayoutDestroy)
        }
    }

    fn set<T>(
        &self,
        desc: &Object<sys::cublasLtMatmulDescOpaque_t>,
        attribute: Attribute,
        value: &T,
    ) -> Result<(), Error> {
        let (value, bytes) = (std::ptr::from_ref(value).cast(), size_of::<T>());
        // SAFETY: the attribute is of the type that this file gives, which the library checks by its size.
        let status = unsafe { self.lt.cublasLtMatmulDescSetAttribute(desc.raw(), attribute, value, bytes) };
        check("cublasLtMatmulDescSetAttribute", status)
    }
}
